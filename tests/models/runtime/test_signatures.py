"""Signed models: with trusted keys, only what one of them has signed is opened."""

import shutil
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.__main__ import app, main
from models.runtime.artifacts import WEIGHTS, every, find
from models.runtime.errors import InvalidKey, UntrustedManifest
from models.runtime.signatures import identity, make_keys, read_public_key, sign


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the shipped manifest with the artifact of the edge."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("manifest.toml", "screening-int8.onnx"):
        shutil.copy(WEIGHTS / name, folder)
    return folder


@pytest.fixture
def vendor(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path / "keys", "vendor")


Pair = tuple[Path, Path]


def test_a_signed_manifest_is_trusted_and_says_by_whom(weights: Path, vendor: Pair) -> None:
    signer = sign(weights, vendor[0])
    found = find("screening-int8", weights, (vendor[1],))
    assert found.signed_by == f"vendor ({signer})"
    assert found.content()
    assert find("screening-int8", weights).signed_by == ""


def test_an_unsigned_manifest_is_refused_where_a_key_is_required(
    weights: Path, vendor: Pair
) -> None:
    """The error names the missing file and the key; without keys the hashes are enough."""
    with pytest.raises(UntrustedManifest) as raised:
        every(weights, (vendor[1],))
    assert str(weights / "manifest.sig") in str(raised.value)
    assert str(vendor[1]) in str(raised.value)
    assert "screening-int8" in every(weights)


def test_each_of_several_keys_is_enough_and_another_is_not(
    weights: Path, vendor: Pair, tmp_path: Path
) -> None:
    hospital = make_keys(tmp_path / "keys", "hospital")
    sign(weights, vendor[0])
    assert every(weights, (hospital[1], vendor[1]))
    with pytest.raises(UntrustedManifest, match=f"expected one by hospital .*{hospital[1]}"):
        every(weights, (hospital[1],))
    sign(weights, hospital[0])
    assert every(weights, (hospital[1],))["screening-int8"].signed_by.startswith("hospital (")
    assert every(weights, (vendor[1],))["screening-int8"].signed_by.startswith("vendor (")


@pytest.mark.parametrize("what", ["threshold", "hash", "signature"])
def test_what_was_changed_after_signing_is_refused(weights: Path, vendor: Pair, what: str) -> None:
    """Thresholds and hashes are signed alike; another manifest's signature is of no use."""
    sign(weights, vendor[0])
    manifest = weights / "manifest.toml"
    text = manifest.read_text()
    if what == "threshold":
        manifest.write_text(text.replace("dismiss = 0.0", "dismiss = 0.9"))
    elif what == "hash":
        manifest.write_text(text.replace('sha256 = "', 'sha256 = "0'))
    else:
        signature = (weights / "manifest.sig").read_text()
        manifest.write_text(f"{text}\n")
        sign(weights, vendor[0])
        manifest.write_text(text)
        (weights / "manifest.sig").write_text(signature.replace(signature[20:30], "AAAAAAAAAA"))
    with pytest.raises(UntrustedManifest, match=r"vendor \(\w+\) is not one of .*manifest.toml"):
        every(weights, (vendor[1],))


@pytest.mark.parametrize("text", ["", "one two three\n", "0123 not-base64!\n", "ü\n"])
def test_a_damaged_file_of_signatures_is_refused(weights: Path, vendor: Pair, text: str) -> None:
    (weights / "manifest.sig").write_text(text)
    with pytest.raises(UntrustedManifest, match=r"manifest\.sig"):
        every(weights, (vendor[1],))


def test_files_that_are_no_keys_are_named(tmp_path: Path, weights: Path, vendor: Pair) -> None:
    """A private key is no public one, and a missing file is none."""
    for wrong in (vendor[0], tmp_path / "missing", weights / "manifest.toml"):
        with pytest.raises(InvalidKey, match=str(wrong)):
            every(weights, (wrong,))
    with pytest.raises(InvalidKey, match="private key"):
        sign(weights, vendor[1])


def test_a_private_key_is_its_owners_alone_and_replaces_none(tmp_path: Path, vendor: Pair) -> None:
    assert stat.S_IMODE(vendor[0].stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make_keys(tmp_path / "keys", "vendor")


def test_the_commands_make_keys_and_sign_what_is_whole(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = CliRunner().invoke(app, ["keys", str(tmp_path), "--name", "release"])
    assert identity(read_public_key(tmp_path / "release.pem")) in made.stdout
    sign_it = ["sign", "--key", str(tmp_path / "release.key"), "--models", str(weights)]
    file = next(weights.glob("*.onnx"))
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    monkeypatch.setattr("sys.argv", ["overread-models", *sign_it])
    with pytest.raises(SystemExit):
        main()
    assert "DamagedArtifact" in capsys.readouterr().err
    file.write_bytes(content)
    signed = CliRunner().invoke(app, sign_it)
    assert "signed by" in signed.stdout
    # the other artifacts of the manifest are not there
    others = [one.name for one in every(weights).values() if one.path != file]
    assert " ".join(signed.stdout.split()).endswith(f"not checked: {', '.join(others)}")
    assert every(weights, (tmp_path / "release.pem",))
