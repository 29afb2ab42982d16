import stat
import tomllib
from pathlib import Path

import pytest

from voiced.config import (
    CREDENTIAL,
    Config,
    ConfigError,
    KeyMissing,
    Realtime,
    Secret,
    is_loopback,
    is_private,
    load,
    parse,
    read_key,
    url_problem,
)

DEFAULT = Path(__file__).parents[1] / "config/voiced.toml"
KEY = "sk-proj-Abc123_-xyz"


# --- the file --------------------------------------------------------------------------------


def test_the_documented_file_is_the_default() -> None:
    assert load(DEFAULT) == Config() == parse("", "empty")


def test_the_documented_file_holds_every_key() -> None:
    data = tomllib.loads(DEFAULT.read_text("utf-8"))
    tables = {name: getattr(Config(), name) for name in Config.__struct_fields__}
    written = {(table, key) for table, keys in data.items() for key in keys}
    assert written == {(name, key) for name, t in tables.items() for key in t.__struct_fields__}


def test_a_key_left_out_has_its_default() -> None:
    config = parse("[turn]\nsilence_ms = 900\n", "f.toml")
    assert config.turn.silence_ms == 900
    assert config.turn.preroll_ms == Config().turn.preroll_ms


@pytest.mark.parametrize(
    ("use", "channels"), [("use = 3", (3,)), ("use = [0, 2]", (0, 2)), ("", (0,))]
)
def test_one_channel_or_several_are_used(use: str, channels: tuple[int, ...]) -> None:
    config = parse(f"[microphone]\nchannels = 6\n{use}\n", "f.toml")
    assert config.microphone.channels_used == channels


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[realtime]\nmodel = ""', ["realtime.model", '""', "a realtime model's name"]),
        ("[realtime]\nmodel = 3", ["realtime.model", "3", "a realtime model's name"]),
        ("[realtime]\nmodel = 1979-05-27", ["realtime.model", '"1979-05-27"']),
        ('[realtime]\ninstructions = ""', ["realtime.instructions", "not empty"]),
        ("[microphone]\nrate = 4000", ["microphone.rate", "4000", "a rate in Hz"]),
        ("[microphone]\nchannels = 0", ["microphone.channels", "0", "1 to 16"]),
        ("[microphone]\nuse = 1", ["microphone.use", "1", "channels 0 to 0"]),
        ("[microphone]\nuse = [0, 9]", ["microphone.use", "[0,9]", "channel 9"]),
        ("[microphone]\nuse = -1", ["microphone.use", "-1"]),
        ('[microphone]\nuse = ["left"]', ["microphone.use", '["left"]', "a channel number"]),
        ("[speaker]\nvolume = 101", ["speaker.volume", "101", "0 to 100"]),
        ("[speaker]\nvolume = true", ["speaker.volume", "true", "0 to 100"]),
        ('[speaker]\ndevice = ""', ["speaker.device", '""', "an ALSA name"]),
        ("[button]\npin = 58", ["button.pin", "58", 'a GPIO number (BCM), 0 to 57, or "none"']),
        ('[button]\npin = "no"', ["button.pin", '"no"', '"none"']),
        ('[lights]\nkind = "neon"', ["lights.kind", '"neon"', '"pwm" (dims)']),
        ('[lights]\nkind = "rgb"\npins = [22]', ["lights.pins", "[22]", "3 pin(s)"]),
        ("[lights]\npins = [22]", ["lights.pins", "[22]", "0 pin(s)"]),
        ('[lights]\nkind = "led"\npins = [99]', ["lights.pins", "[99]", "GPIO numbers"]),
        ('[lights]\nkind = "led"\npins = [17]', ["lights.pins", "[17]", "button.pin"]),
        ('[lights]\nkind = "rgb"\npins = [1, 1, 2]', ["lights.pins", "[1,1,2]", "twice"]),
        ('[gate]\nenabled = "yes"', ["gate.enabled", '"yes"', "true or false"]),
        (
            '[gate]\nenabled = false\n[turn]\nend = "local"',
            ["gate.enabled", "false", "needs the gate"],
        ),
        ('[turn]\nend = "never"', ["turn.end", '"never"', '"server_vad"', '"local"']),
        ("[turn]\nsilence_ms = 100", ["turn.silence_ms", "100", "200 to 5000"]),
        ("[turn]\npreroll_ms = 501", ["turn.preroll_ms", "501", "0 to 500"]),
        ("[turn]\nfollow_up_s = nan", ["turn.follow_up_s", "nan", "0 to 600"]),
        ("[turn]\nlongest_s = inf", ["turn.longest_s", "inf", "5 to 600"]),
        ("turn = 3", ["turn", "3", "a table of keys"]),
        ("[turn]\nsilence = 600", ["turn.silence", "unknown key", "Did you mean silence_ms?"]),
        ("[turn]\nxyz = 600", ["turn.xyz", "unknown key", "silence_ms, preroll_ms"]),
        ('[realtime]\nurl = ["\\u0085"]', ["realtime.url", '["?"]', "wss://"]),
        ('[turn]\n"\\u2028" = 1', ["turn.?", "unknown key"]),
        ("[speker]\nrate = 1", ["speker", "unknown key", "Did you mean speaker?"]),
        ("[turn]\nend = never", ["not valid TOML", "line 2"]),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_what_is_allowed(
    text: str, says: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "/etc/voiced/voiced.toml")
    for words in ["/etc/voiced/voiced.toml: ", *says]:
        assert words in str(error.value)


@pytest.mark.parametrize(
    "device",
    [
        "default",
        "sysdefault",
        "sysdefault:CARD=Device",
        "dmix",
        "dmix:CARD=Device,DEV=0",
        "plug:dmix",
        "plug:default",
        "plug:'dmix:0'",
        "plug:SLAVE='dmix:0'",
    ],
)
def test_a_speaker_that_goes_on_after_a_cancel_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="goes on playing after a cancel"):
        parse(f'[speaker]\ndevice = "{device}"', "f.toml")


@pytest.mark.parametrize("device", ["plughw:CARD=default,DEV=0", "hw:0", "defaults", "rig_spk"])
def test_every_other_explicit_speaker_is_taken(device: str) -> None:
    assert parse(f'[speaker]\ndevice = "{device}"', "f.toml").speaker.device == device


def test_a_file_that_is_not_there_or_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: can't be read: No such file.*--config FILE"):
        load(tmp_path / "no.toml")
    (tmp_path / "binary.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"binary\.toml: not UTF-8 text"):
        load(tmp_path / "binary.toml")


# --- the server's address --------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "wss://api.openai.com/v1/realtime",
        "wss://10.0.0.1:8443/x",
        "ws://127.0.0.1:8765/v1/realtime",
        "ws://127.255.0.9/",
        "ws://[::1]:80/",
        "ws://10.1.2.3/",
        "ws://172.16.0.1/",
        "ws://172.31.255.255/",
        "ws://192.168.1.10:9000/",
        "ws://[fd12::1]/",
        "ws://[fe80::1%eth0]/",
    ],
)
def test_addresses_that_are_taken(url: str) -> None:
    assert url_problem(url) is None
    assert parse(f"[realtime]\nurl = '{url}'", "f.toml").realtime.url == url


@pytest.mark.parametrize(
    "url",
    [
        "ws://api.openai.com/v1/realtime",
        "ws://localhost/",  # a name, which a name server may send anywhere
        "ws://homeserver.local/",
        "ws://8.8.8.8/",
        "ws://172.32.0.1/",
        "ws://192.169.0.1/",
        "ws://169.254.1.1/",
        "ws://[2001:db8::1]/",
        "ws://[::ffff:8.8.8.8]/",
        "ws://10.1/",
    ],
)
def test_without_encryption_only_a_literal_address_in_the_house_is_taken(url: str) -> None:
    with pytest.raises(ConfigError, match=r"realtime\.url = .*not encrypted.*Use wss://"):
        parse(f"[realtime]\nurl = '{url}'", "f.toml")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "wss://",
        "wss:api.openai.com",
        "https://api.openai.com/v1/realtime",
        "api.openai.com",
        "WSS://api.openai.com/",  # the link compares as written
        " wss://api.openai.com/",
        "wss://user:word@host/",
        "wss://host/?model=x",
        "wss://host/#x",
        "wss://host:99999/",
        "wss://[::1/",
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.toml: realtime\.url = "):
        parse(f"[realtime]\nurl = '{url}'", "f.toml")


def test_private_and_loopback_are_told_apart() -> None:
    assert is_private("127.0.0.1")
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_private("192.168.1.1")
    assert not is_loopback("192.168.1.1")
    assert not is_private("localhost")
    assert not is_loopback("localhost")


# --- the key ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def a_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


def credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    a_file(folder / CREDENTIAL, text, 0o440)  # as systemd makes them
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))


def key_of(config: Realtime) -> str | None:
    key = read_key(config)
    return key.reveal() if key else None


def test_a_secret_does_not_print() -> None:
    secret = Secret(KEY)
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", f"{secret!r:>40}"):
        assert KEY not in text
    assert secret.reveal() == KEY
    with pytest.raises(AttributeError):
        _ = secret.__dict__


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "  \n\n"])
def test_the_key_is_read_from_its_file(tmp_path: Path, ending: str) -> None:
    path = a_file(tmp_path / "key", KEY + ending)
    assert key_of(Realtime(api_key_file=str(path))) == KEY


def test_the_credential_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential(tmp_path, monkeypatch, "sk-credential\n")
    path = a_file(tmp_path / "key", KEY)
    assert key_of(Realtime(api_key_file=str(path))) == "sk-credential"


@pytest.mark.parametrize("text", ["unset", "unset\n", "", "\n"])
def test_a_credential_that_is_unset_or_empty_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    credential(tmp_path, monkeypatch, text)
    with pytest.raises(KeyMissing, match="set the credential openai-api-key"):
        read_key(Realtime())
    path = a_file(tmp_path / "key", KEY)
    assert key_of(Realtime(api_key_file=str(path))) == KEY


def test_a_unit_without_the_credential_falls_back_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = a_file(tmp_path / "key", KEY)
    assert key_of(Realtime(api_key_file=str(path))) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_file_others_can_get_at_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = a_file(tmp_path / "key", KEY, mode)
    with pytest.raises(KeyMissing, match=rf"\(mode {mode:04o}\)\. Run: chmod 600 {path}") as error:
        read_key(Realtime(api_key_file=str(path)))
    assert KEY not in str(error.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_its_owner_is_taken(tmp_path: Path, mode: int) -> None:
    path = a_file(tmp_path / "key", KEY, mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert key_of(Realtime(api_key_file=str(path))) == KEY


def test_a_key_file_that_is_missing_or_empty_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing, match=r"realtime\.api_key_file = .*can't be read: No such"):
        read_key(Realtime(api_key_file=str(tmp_path / "none")))
    with pytest.raises(KeyMissing, match="is not a regular file"):
        read_key(Realtime(api_key_file=str(tmp_path)))
    path = a_file(tmp_path / "key", "\n")
    with pytest.raises(KeyMissing, match="is empty"):
        read_key(Realtime(api_key_file=str(path)))


@pytest.mark.parametrize("text", [f"OPENAI_API_KEY = {KEY}", f"{KEY}\n{KEY}", f"{KEY}é", "a\0b"])
def test_what_is_no_key_is_refused_without_being_told(tmp_path: Path, text: str) -> None:
    path = a_file(tmp_path / "key", text)
    with pytest.raises(KeyMissing, match="holds no key") as error:
        read_key(Realtime(api_key_file=str(path)))
    assert KEY not in str(error.value)


def test_a_key_never_goes_unencrypted_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential(tmp_path, monkeypatch, KEY)
    path = a_file(tmp_path / "key", KEY)
    assert read_key(Realtime(url="ws://192.168.1.5/", api_key_file=str(path))) is None
    assert key_of(Realtime(url="ws://127.0.0.1/", api_key_file=str(path))) == KEY


def test_a_server_on_this_machine_needs_no_key() -> None:
    assert read_key(Realtime(url="ws://127.0.0.1:8765/")) is None
