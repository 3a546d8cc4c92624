# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Push and load through the real client against a Hub on this machine: what comes back is bit-equal, and what
fails leaves the repository and the folder as they were.
"""

from __future__ import annotations

import json

import pytest
import transformers as tf
from helpers import elements, error_of, shared, unique
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from typer.testing import CliRunner
from zoo import build

import hf_share
from hf_share import cli
from hf_share.hub.push import push_folder


@pytest.fixture
def folder(tmp_path):
    shared(build("llama")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_a_model_by_its_id(hub, client, tmp_path):
    before = client("m = model(); m.push_to_hub('me/shared'); print(digest(m))")
    assert client("print(digest(Auto.from_pretrained('me/shared')))") == before
    names = hub.files("me/shared")
    assert names == {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "model.safetensors").write_bytes(hub.file("me/shared", "model.safetensors"))
    assert elements(tmp_path / "file") == unique(shared(build("llama"))) + 1  # the placeholder
    # from the cache, without asking, and with nobody there
    asked = len(hub.seen)
    assert client("print(digest(Auto.from_pretrained('me/shared')))", HF_HUB_OFFLINE="1") == before
    assert client("print(digest(Auto.from_pretrained('me/shared', local_files_only=True)))") == before
    assert not [line for line in hub.seen[asked:] if "resolve" in line]
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    patient = "import time; time.sleep = lambda seconds: None\n"
    assert client(patient + "print(digest(Auto.from_pretrained('me/shared')))", **dead) == before
    said = client("Auto.from_pretrained('me/other')", fails=True, HF_HUB_OFFLINE="1")
    assert "me/other" in said or "offline" in said


@pytest.mark.slow
def test_revisions_and_a_branch_that_moves(hub, client):
    code = """
    first, second = model(), model(seed=1)
    one = first.push_to_hub("me/shared").oid
    first.push_to_hub("me/shared", revision="v1")
    assert digest(Auto.from_pretrained("me/shared")) == digest(first)
    hf_share.model_card(first, repo="me/shared").push_to_hub("me/shared")
    second.push_to_hub("me/shared")
    for revision, expected in (("main", second), (None, second), ("v1", first), (one, first)):
        assert digest(Auto.from_pretrained("me/shared", revision=revision or "main")) == digest(expected)
    try:
        Auto.from_pretrained("me/shared", revision="v2")
    except OSError as error:
        assert "v2" in str(error)
        print("ok")
    """
    assert client(code) == "ok"
    assert "weight-sharing" in hub.file("me/shared", "README.md").decode()  # the card stays


@pytest.mark.slow
def test_a_branch_that_moves_while_a_model_loads(hub, client):
    """Config and weights are of one commit, also where another is pushed between the two."""
    code = """
    first, second = model(), shared(build("llama", seed=1), "fold")
    one, two = first.push_to_hub("me/shared").oid, second.push_to_hub("me/shared").oid
    print(one, two, digest(first))
    """
    one, two, expected = client(code).split()
    held = hub.repos["me/shared"]
    held.refs["main"] = one
    hub.moves.append(lambda: held.refs.update(main=two))
    load = "print(digest(Auto.from_pretrained('me/shared', cache_dir='another')))"
    assert client(load) == expected and held.refs["main"] == two
    assert client(load) != expected


@pytest.mark.slow
def test_subfolder_token_and_private(hub, client):
    code = """
    import os
    from huggingface_hub import HfApi
    m = model()
    m.save_pretrained("saved")
    HfApi().create_repo("me/hidden", private=True)
    HfApi().upload_folder(repo_id="me/hidden", folder_path="saved", path_in_repo="small")
    assert digest(Auto.from_pretrained("me/hidden", subfolder="small")) == digest(m)
    HfApi().upload_folder(repo_id="me/hidden", folder_path="saved", path_in_repo="deep/er", revision="main")
    again = Auto.from_pretrained("me/hidden", subfolder="deep/er", token=os.environ.pop("HF_TOKEN"))
    assert digest(again) == digest(m)
    try:
        Auto.from_pretrained("me/hidden", subfolder="small", token=False, cache_dir="another")
    except OSError as error:
        assert "me/hidden" in str(error)
        print("ok")
    """
    assert client(code) == "ok"


@pytest.mark.slow
def test_an_adapter_by_its_id(hub, client):
    code = """
    from peft import PeftModel, get_peft_model
    build("llama").push_to_hub("me/base")
    config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False,
                                      task_type="CAUSAL_LM")
    torch.manual_seed(1)
    adapted = get_peft_model(Auto.from_pretrained("me/base").eval(), config)
    adapted.push_to_hub("me/adapter")
    again = PeftModel.from_pretrained(Auto.from_pretrained("me/base").eval(), "me/adapter")
    assert digest(again) == digest(adapted)
    from peft import AutoPeftModelForCausalLM
    assert digest(AutoPeftModelForCausalLM.from_pretrained("me/adapter")) == digest(adapted)
    from huggingface_hub import HfApi
    adapted.save_pretrained("saved")
    HfApi().create_repo("me/many")
    HfApi().upload_folder(repo_id="me/many", folder_path="saved", path_in_repo="one")
    base = Auto.from_pretrained("me/base").eval()
    again = PeftModel.from_pretrained(base, "me/many", subfolder="one", revision="main")
    print(digest(again) == digest(adapted))
    """
    assert client(code) == "True"
    assert "adapter_model.safetensors" in hub.files("me/adapter")


@pytest.mark.slow
def test_from_the_trainer(hub, client):
    code = """
    from helpers import trainer
    m = model()
    t = trainer(m, "out", steps=1, hub_model_id="me/trained")
    t.train()
    t.push_to_hub()
    print(digest(m) == digest(Auto.from_pretrained("me/trained")))
    """
    assert client(code) == "True"
    assert {"model.safetensors", "config.json", "README.md"} <= hub.files("me/trained")


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on(hub, client):
    before = client("m = model(); m.push_to_hub('me/shared'); print(digest(m))")
    hub.cut = 20_000
    small = "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1000\n"
    assert client(small + "print(digest(Auto.from_pretrained('me/shared')))") == before
    assert "range 20000" in hub.seen


def test_push_a_folder(online, folder):
    (folder / "optimizer.pt").write_bytes(b"1")
    (folder / "checkpoints" / "checkpoint-50").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-50" / "config.json").write_text("{}")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "config.json").write_text("{}")
    done = push_folder(folder, "me/shared", private=True, message="first", base_model="me/base")
    assert online.files("me/shared") == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
    assert online.repos["me/shared"].private and online.repos["me/shared"].refs["main"] == done.oid
    assert online.file("me/shared", "model.safetensors") == (folder / "model.safetensors").read_bytes()
    card = online.file("me/shared", "README.md").decode()
    assert 'from_pretrained("me/shared")' in card and "base_model: me/base" in card
    assert not (folder / "README.md").exists()


def test_a_card_that_somebody_wrote_stays(online, folder):
    push_folder(folder, "me/shared")
    own = "---\nlicense: mit\n---\n# Mine\n"
    (folder / "README.md").write_text(own)
    push_folder(folder, "me/shared")
    assert online.file("me/shared", "README.md").decode() == own
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# Model Card for Model ID\n")
    push_folder(folder, "me/shared")
    assert online.file("me/shared", "README.md").decode() == own
    push_folder(folder, "me/new")
    assert "weight-sharing" in online.file("me/new", "README.md").decode()


def test_push_to_a_branch(online, folder):
    push_folder(folder, "me/shared", revision="v1")
    assert online.files("me/shared") == set()
    assert "model.safetensors" in online.files("me/shared", "v1")


@pytest.mark.parametrize("kind", ["create", "preupload", "batch", "upload", "verify", "commit"])
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_errors_lose_nothing(online, folder, kind, status):
    push_folder(folder, "me/shared")
    before, files = dict(online.repos["me/shared"].refs), bytes_of(folder)
    build("llama", seed=1).save_pretrained(folder.parent / "other")
    online.fail(kind, status)
    if kind == "create" and status in (401, 403):
        pass  # the client goes on where the repository is there
    else:
        with pytest.raises((HfHubHTTPError, OSError)) as error:
            push_folder(folder.parent / "other", "me/shared")
        assert str(status) in str(error.value)
        assert online.repos["me/shared"].refs == before and bytes_of(folder) == files
    online.failures.clear()
    push_folder(folder.parent / "other", "me/shared")
    held = online.file("me/shared", "model.safetensors")
    assert held == (folder.parent / "other" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("status", [0, 500, 503, 429])
def test_one_failure_of_an_upload_is_tried_again(online, folder, status):
    online.fail("upload", status, times=1, **{"Retry-After": "1"})
    push_folder(folder, "me/shared")
    assert online.file("me/shared", "model.safetensors") == (folder / "model.safetensors").read_bytes()
    assert sum(line.startswith("upload") for line in online.seen) == 2


def test_an_upload_that_breaks_off_is_resumed_by_file(online, folder, tmp_path):
    model = shared(build("llama"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    count = len(list((tmp_path / "shards").glob("*.safetensors")))
    assert count > 2
    online.fail("commit", 500, times=1)
    with pytest.raises(HfHubHTTPError):
        push_folder(tmp_path / "shards", "me/shared")
    assert online.files("me/shared") == set()
    push_folder(tmp_path / "shards", "me/shared")
    assert sum(line.startswith("upload") for line in online.seen) == count  # none is sent twice


def test_a_repository_of_another(online, folder):
    with pytest.raises(HfHubHTTPError, match="403"):
        push_folder(folder, "you/shared")
    with pytest.raises((HfHubHTTPError, RepositoryNotFoundError), match="401"):
        push_folder(folder, "me/shared", token="wrong")
    assert not online.repos


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "truncated"),
        (lose_a_shard, "lacks model-00001-of-00002"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "no index"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
    ],
)
def test_half_a_model_is_not_sent(online, folder, harm, message):
    harm(folder)
    with pytest.raises(hf_share.ShareError, match=message):
        push_folder(folder, "me/shared")
    assert not online.seen


def test_from_the_command_line(online, folder):
    options = ["--private", "--revision", "v1", "--message", "first", "--license", "mit"]
    run = CliRunner().invoke(cli.app, ["push", str(folder), "me/shared", *options], catch_exceptions=False)
    assert run.exit_code == 0 and "/me/shared/commit/" in run.stdout
    assert "license: mit" in online.file("me/shared", "README.md", "v1").decode()


@pytest.mark.parametrize(
    ("repo", "kind", "status", "message"),
    [
        ("you/shared", "nothing", 0, "403"),
        ("me/shared", "create", 401, "401"),
        ("me/shared", "commit", 503, "503"),
        ("me/shared", "upload", 500, "push again to go on"),
        ("me/shared", "commit", 0, "push again to go on"),
        ("a b", "nothing", 0, "Repo id"),
    ],
)
def test_a_users_error_is_no_traceback(online, folder, monkeypatch, capsys, repo, kind, status, message):
    online.fail(kind, status)
    error = error_of(monkeypatch, capsys, "push", folder, repo)
    tf.utils.logging.set_verbosity_warning()
    assert message in error
