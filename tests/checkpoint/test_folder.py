"""Checkpoint folders: exact round trips, and one clear sentence for each thing that can be wrong with one."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl.checkpoint import folder as checkpoint
from qwenvl.checkpoint import writing
from qwenvl.checkpoint.converting import convert
from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "qwen.tiktoken")


def config(**llm) -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=24, patch_size=4, image_size=16),
        adapter=AdapterConfig(queries=4, heads=2),
        llm=LLMConfig(**{"vocab_size": 24, "hidden": 16, "layers": 1, "heads": 2, "mlp_width": 24, **llm}),
        imgpad_id=20,
    )


@pytest.fixture()
def ours(tmp_path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(QwenVL(config()), tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture()
def official(tmp_path) -> Path:
    """An official folder whose tensors have three precisions."""
    folder = tmp_path / "official"
    folder.mkdir()
    for name in SETTINGS:
        shutil.copyfile(GOLDEN / name, folder / name)
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return folder


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


# === Round trips ===


def test_saved_and_loaded_is_the_same_model(tmp_path):
    torch.manual_seed(0)
    model = QwenVL(config(bias=True))
    checkpoint.save(model, tmp_path / "new" / "folder")
    again = checkpoint.load(tmp_path / "new" / "folder", CPU)
    assert again.config == model.config and not again.training
    assert same_bits(dict(model.state_dict()), dict(again.state_dict()))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["folder"]
    assert (
        checkpoint.load(
            tmp_path / "new" / "folder", Runtime(device=CPU.device, dtype=torch.bfloat16)
        ).llm.embed.weight.dtype
        == torch.bfloat16
    )


def test_official_to_ours_and_back_is_the_same_folder(official, tmp_path):
    convert(official, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "qwenvl"
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    before, after = (load_file(f / "model.safetensors") for f in (official, tmp_path / "back"))
    assert {t.dtype for t in before.values()} == {torch.float16, torch.bfloat16, torch.float32}
    assert same_bits(before, after)
    for name in SETTINGS:
        assert (official / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name
    assert {f.name for f in official.iterdir()} == {f.name for f in (tmp_path / "back").iterdir()}
    a, b = (checkpoint.load(f, CPU) for f in (official, tmp_path / "ours"))
    assert same_bits(dict(a.state_dict()), dict(b.state_dict()))


def test_our_form_really_is_another_order(official, tmp_path):
    """Our language model keeps the rows of a head together; the official one stacks queries, keys and values."""
    convert(official, tmp_path / "ours")
    theirs, ours = (load_file(f / "model.safetensors") for f in (official, tmp_path / "ours"))
    stacked, heads = theirs["transformer.h.1.attn.c_attn.weight"], ours["llm.blocks.1.attention.qkv.weight"]
    queries, keys, values = stacked.chunk(3)
    width = 16  # of one of the eight heads of tiny_q4
    assert torch.equal(heads[: 3 * width], torch.cat([queries[:width], keys[:width], values[:width]]))
    assert torch.equal(heads[-width:], values[-width:])


def test_an_official_config_is_made_where_none_is_remembered(official, tmp_path):
    convert(official, tmp_path / "ours")
    (tmp_path / "ours" / "official_config.json").unlink()
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    assert checkpoint.read_config(tmp_path / "back") == checkpoint.read_config(official)


def test_a_remembered_official_config_that_is_not_this_model_is_not_written_back(official, tmp_path):
    convert(official, tmp_path / "ours")
    file = tmp_path / "ours" / "config.json"
    values = json.loads(file.read_text())
    values["vision"]["image_size"] = 112
    file.write_text(json.dumps(values))
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    assert checkpoint.read_config(tmp_path / "back").vision.image_size == 112


@pytest.mark.parametrize("form", ["bin", "sharded bin", "sharded safetensors", "old bin"])
def test_every_form_of_official_weights(official, tmp_path, form):
    tensors = load_file(official / "model.safetensors")
    (official / "model.safetensors").unlink()
    stem, suffix = ("pytorch_model", "bin") if "bin" in form else ("model", "safetensors")
    halves = [dict(list(tensors.items())[0::2]), dict(list(tensors.items())[1::2])]
    parts = (
        {f"{stem}-{n}-of-2.{suffix}": half for n, half in enumerate(halves, 1)} if "sharded" in form else None
    )
    for name, part in (parts or {f"{stem}.{suffix}": tensors}).items():
        if suffix == "bin":
            torch.save(part, official / name, _use_new_zipfile_serialization=form != "old bin")
        else:
            save_file(part, official / name)
    if parts:
        places = {tensor: name for name, part in parts.items() for tensor in part}
        (official / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    convert(official, tmp_path / "again", to="official")
    assert same_bits(tensors, load_file(tmp_path / "again" / "model.safetensors"))


def test_large_weights_are_sharded_and_read_again(official, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 300_000)
    convert(official, tmp_path / "sharded")
    files = sorted(f.name for f in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    expected = load_file(official / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert all(sum(t.nbytes for t in load_file(tmp_path / "sharded" / f).values()) <= 300_000 for f in files)
    convert(tmp_path / "sharded", tmp_path / "back", to="official")
    found = {}
    for file in (tmp_path / "back").glob("*.safetensors"):
        found |= load_file(file)
    assert same_bits(expected, found)


def test_a_model_folder_is_replaced_whole(ours):
    torch.manual_seed(1)
    model = QwenVL(config(layers=2))
    checkpoint.save(model, ours)
    assert same_bits(dict(model.state_dict()), dict(checkpoint.load(ours, CPU).state_dict()))
    assert sorted(f.name for f in ours.iterdir()) == ["config.json", "model.safetensors"]
    assert [f.name for f in ours.parent.iterdir()] == ["ours"]
    assert all(f.stat().st_mode & 0o777 == 0o644 for f in ours.iterdir()), "others may read it"


def test_a_folder_can_be_converted_in_place(official):
    before = load_file(official / "model.safetensors")
    convert(official, official)
    convert(official, official, to="official")
    assert same_bits(before, load_file(official / "model.safetensors"))


# === What can be wrong ===


def refused(call, *expected: str) -> str:
    with pytest.raises(ValueError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and message[-1] in ".?", message
    for part in expected:
        assert part in message, message
    return message


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_tensor(ours):
    rewrite(ours, lambda t: t.pop("llm.norm.weight"))
    message = refused(lambda: checkpoint.load(ours, CPU))
    assert (
        message
        == f"{ours} does not fit its config.json: missing llm.norm.weight (16,). Use the folder's own files."
    )


def test_an_unknown_tensor(ours):
    rewrite(ours, lambda t: t.update({"llm.extra": torch.zeros(2)}))
    refused(lambda: checkpoint.load(ours, CPU), "unknown llm.extra (2,)")


def test_a_misshapen_tensor(ours):
    rewrite(ours, lambda t: t.update({"llm.norm.weight": torch.zeros(17)}))
    refused(lambda: checkpoint.load(ours, CPU), "llm.norm.weight has shape (17,), expected (16,)")


def test_many_wrong_tensors_are_counted(ours):
    rewrite(ours, lambda t: [t.pop(name) for name in list(t) if "vision" in name])
    refused(lambda: checkpoint.load(ours, CPU), "missing vision.position", "; and 13 more")


def test_missing_and_unknown_tensors_of_an_official_folder(official):
    rewrite(
        official, lambda t: t.update({"transformer.h.7.ln_1.weight": t.pop("transformer.h.1.ln_1.weight")})
    )
    refused(
        lambda: checkpoint.load(official, CPU),
        "missing llm.blocks.1.norm_1.weight",
        "unknown llm.blocks.7.norm_1.weight",
    )


def test_our_names_in_an_official_folder_are_unknown(official):
    rewrite(official, lambda t: t.update({"llm.norm.weight": torch.zeros(128)}))
    refused(lambda: checkpoint.load(official, CPU), "unknown llm.norm.weight")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_truncated_weights(official, form, share):
    file = official / "model.safetensors"
    if form == "bin":
        torch.save(load_file(file), official / "pytorch_model.bin")
        file.unlink()
        file = official / "pytorch_model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refused(
        lambda: checkpoint.load(official, CPU), f"{file} is truncated or no weight file (", "copy it again"
    )


def test_a_pickle_that_would_run_code(official):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (official / "ran",))

    torch.save({"transformer.wte.weight": Bad()}, official / "pytorch_model.bin")
    (official / "model.safetensors").unlink()
    refused(lambda: checkpoint.load(official, CPU), "pytorch_model.bin is truncated or no weight file")
    assert not (official / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.zeros(3)])
def test_a_bin_without_tensors(official, content):
    torch.save(content, official / "pytorch_model.bin")
    (official / "model.safetensors").unlink()
    refused(lambda: checkpoint.load(official, CPU), "is no table of tensors")


def test_no_weights(ours):
    (ours / "model.safetensors").unlink()
    message = refused(lambda: checkpoint.load(ours, CPU))
    assert (
        message
        == f"{ours} has no weights; expected model.safetensors or pytorch_model.bin, whole or sharded."
    )


def test_a_missing_shard(ours):
    (ours / "model.safetensors").unlink()
    index = {"weight_map": {"llm.norm.weight": "model-00001-of-00002.safetensors"}}
    (ours / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(
        lambda: checkpoint.load(ours, CPU), "model-00001-of-00002.safetensors is missing though the index"
    )


@pytest.mark.parametrize("index", ["[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{"])
def test_a_broken_index(ours, index):
    (ours / "model.safetensors.index.json").write_text(index)
    refused(lambda: checkpoint.load(ours, CPU), "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(dropout=0.1), "config has the unknown key 'dropout'"),
        (lambda c: c["llm"].update(hiden=3), "config.llm has the unknown key 'hiden'"),
        (lambda c: c["llm"].pop("rope_base"), "it lacks llm.rope_base, which no weight tells"),
        (lambda c: c["vision"].pop("heads"), "it lacks vision.heads"),
        (lambda c: c["llm"].update(hidden="16"), "config.llm.hidden is '16'; expected int"),
        (lambda c: c["llm"].update(heads=3), "llm.heads is 3, which does not divide llm.hidden = 16"),
        (lambda c: c.update(model_type="llava"), "has model_type 'llava'; expected 'qwenvl'"),
        (lambda c: c.update(imgpad_id=24), "imgpad_id is 24 but the vocabulary has 24 rows"),
    ],
)
def test_a_wrong_config(ours, change, expected):
    values = json.loads((ours / "config.json").read_text())
    change(values)
    (ours / "config.json").write_text(json.dumps(values))
    refused(lambda: checkpoint.load(ours, CPU), expected)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_a_config_that_is_none(ours, text):
    (ours / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: checkpoint.load(ours, CPU), "config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("seq_length"), "lacks 'seq_length'"),
        (lambda c: c["visual"].pop("width"), "lacks 'width'"),
        (lambda c: c.update(hidden_size="128"), "wrong type"),
        (lambda c: c.update(visual=[]), "wrong type"),
        (lambda c: c.update(vocab_size="520"), "config.llm.vocab_size is '520'; expected int"),
        (lambda c: c.update(kv_channels=8), "contradicts itself: hidden_size 128"),
        (lambda c: c["visual"].update(output_dim=64), "contradicts itself"),
        (lambda c: c["visual"].update(n_queries=5), "adapter.queries is 5"),
    ],
)
def test_a_wrong_official_config(official, change, expected):
    values = json.loads((official / "config.json").read_text())
    change(values)
    (official / "config.json").write_text(json.dumps(values))
    refused(lambda: checkpoint.load(official, CPU), expected)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("llm", "layers", 10**12), ("llm", "layers", 9_000), ("vision", "layers", 10**7), ("vision", "layers", 500),
        ("llm", "vocab_size", 10**18), ("llm", "vocab_size", 10**8), ("vision", "image_size", 1_400_000_000),
        ("llm", "rope_base", 1e300), ("llm", "sequence_length", 10**18), ("adapter", "queries", 10**12),
        ("llm", "mlp_width", 10**15), ("vision", "mlp_width", 2**62),
    ],
)  # fmt: skip
def test_f87_sizes_are_held_against_the_weights_before_anything_is_built(
    ours, part, name, value, monkeypatch
):
    monkeypatch.setattr(checkpoint, "QwenVL", lambda _: pytest.fail("built"))
    values = json.loads((ours / "config.json").read_text())
    values[part][name] = value
    (ours / "config.json").write_text(json.dumps(values))
    refused(lambda: checkpoint.load(ours, CPU), "config.json")


@pytest.mark.parametrize("base", ["Infinity", "-Infinity", "NaN", "1e999", "0", "-1.0"])
def test_f87_a_base_that_is_no_base(ours, base):
    text = (ours / "config.json").read_text()
    assert '"rope_base": 10000.0' in text
    (ours / "config.json").write_text(text.replace('"rope_base": 10000.0', f'"rope_base": {base}'))
    refused(lambda: checkpoint.load(ours, CPU), "config.json")
    with pytest.raises(ValueError, match="rope_base"):
        LLMConfig(rope_base=float(base))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["visual"].update(mlp_ratio=1e300), lambda c: c["visual"].update(width="1" * 9, mlp_ratio=10**9),
        lambda c: c.update(kv_channels=[0], num_attention_heads=10**12), lambda c: c.update(num_hidden_layers=10**12),
        lambda c: c["visual"].update(image_size=1_400_000_000), lambda c: c.update(vocab_size=10**18),
    ],
)  # fmt: skip
def test_f87_hostile_official_configs(official, change):
    values = json.loads((official / "config.json").read_text())
    change(values)
    (official / "config.json").write_text(json.dumps(values))
    refused(lambda: checkpoint.load(official, CPU), "config.json")


@pytest.mark.parametrize(
    "place", ["/etc/shadow", "../../etc/passwd", "../ours/model.safetensors", "pipe", "zero", "a/b", "."]
)
def test_f87_shards_are_files_in_the_folder(ours, place):
    (ours / "model.safetensors").unlink()
    os.mkfifo(ours / "pipe")
    (ours / "zero").symlink_to("/dev/zero")
    index = {"weight_map": {"llm.norm.weight": place}}
    (ours / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: checkpoint.load(ours, CPU), place)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_f87_no_file_of_a_folder_is_waited_for(ours, name, kind):
    if name != "config.json":
        (ours / "model.safetensors").unlink()
    (ours / name).unlink(missing_ok=True)
    os.mkfifo(ours / name) if kind == "pipe" else (ours / name).symlink_to("/dev/zero")
    refused(lambda: checkpoint.load(ours, CPU), f"{name} is a {kind}; expected a file")


def test_f87_a_tensor_larger_than_its_memory_is_not_copied(ours):
    (ours / "model.safetensors").unlink()
    torch.save({"llm.embed.weight": torch.zeros(1).expand(1 << 45)}, ours / "pytorch_model.bin")
    refused(lambda: checkpoint.load(ours, CPU), "llm.embed.weight in a type or form")


def test_no_folder(tmp_path):
    refused(
        lambda: checkpoint.load(tmp_path / "nowhere", CPU),
        "is no folder; give a model folder, `tiny`, or a hub id",
    )
    refused(lambda: checkpoint.load(tmp_path, CPU), "config.json does not exist")


def test_a_folder_without_a_model_does_not_hide_a_shipped_one(tmp_path, ours, monkeypatch):
    """Drawings are fetched into ./drawings, runs are written to ./tiny: neither is the model of that name."""
    package = tmp_path / "package"
    (package / "drawings").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "files", lambda _: package)
    for here in ("drawings", "tiny"):
        Path(here).mkdir()
    assert checkpoint.resolve("drawings") == package / "drawings"
    assert checkpoint.resolve("./drawings") == Path("drawings"), "written as a path it is a folder"
    assert checkpoint.resolve("tiny") == Path("tiny"), "not shipped here: what there is of that name"
    shutil.copytree(ours, "drawings", dirs_exist_ok=True)
    assert checkpoint.resolve("drawings") == Path("drawings")
    Path("tiny").rmdir()
    refused(
        lambda: checkpoint.resolve("tiny"), "tiny does not come with this version; train it by recipes/tiny"
    )


def test_the_shipped_model_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (checkpoint.resolve("tiny") / "model.safetensors").is_file()


# === Writing ===


def left_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, ours, monkeypatch):
    before = (ours / "model.safetensors").read_bytes()

    def full(tensors, file):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(writing, "write_file", full)
    model = QwenVL(config())
    message = refused(lambda: checkpoint.save(model, tmp_path / "new"))
    assert message == (
        f"could not write {tmp_path / 'new'}: the disk is full; nothing was left of it. "
        "Make room or give another folder."
    )
    refused(lambda: checkpoint.save(model, ours), "the disk is full")
    assert left_in(tmp_path) == ["ours"] and (ours / "model.safetensors").read_bytes() == before


def test_a_full_disk_as_safetensors_says_it(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError(
            'Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'
        )

    monkeypatch.setattr(writing, "write_file", full)
    refused(lambda: checkpoint.save(QwenVL(config()), tmp_path / "new"), "the disk is full")
    assert left_in(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a device of Linux")
def test_a_full_device(tmp_path, monkeypatch):
    """The message of a real write that fails, not of a pretended one."""
    monkeypatch.setattr(
        checkpoint, "write_config", lambda folder, values: Path("/dev/full").write_text("x" * 10_000)
    )
    refused(lambda: checkpoint.save(QwenVL(config()), tmp_path / "new"), "the disk is full")
    assert left_in(tmp_path) == []


def test_a_replacement_that_fails_half_way_keeps_the_old(ours, monkeypatch):
    before = (ours / "model.safetensors").read_bytes()
    rename = Path.rename

    def fails_for_the_new(self, target):
        if "unfinished" in self.name and not self.name.endswith("-replaced"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(checkpoint, "swapped", lambda *_: False)  # a system without exchanging renames
    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    refused(lambda: checkpoint.save(QwenVL(config()), ours), "Input/output error")
    assert left_in(ours.parent) == ["ours"] and (ours / "model.safetensors").read_bytes() == before


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(QwenVL(config()), tmp_path / "new")
    assert left_in(tmp_path) == []


def killed(work) -> None:
    """Run in a process of its own, which ends by SIGKILL."""

    def body():
        work()
        pytest.fail("not killed")

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("exchange", [True, False])
def test_f95_a_kill_between_the_renames_leaves_the_old_or_the_new_model(ours, tmp_path, exchange):
    before = (ours / "model.safetensors").read_bytes()
    model = QwenVL(config())

    def work():
        rename = Path.rename
        if exchange:
            setattr(checkpoint.shutil, "rmtree", die)  # noqa: B010  the first thing after the exchange
        else:
            checkpoint.swapped = lambda *_: False
            stopped = lambda self, to: rename(self, to) if str(to).endswith("-replaced") else die()  # noqa: E731
            setattr(Path, "rename", stopped)  # noqa: B010
        checkpoint.save(model, ours)

    killed(work)
    assert ours.exists() == exchange
    if exchange:
        assert (ours / "model.safetensors").read_bytes() != before
    checkpoint.save(model, tmp_path / "other")  # any next run beside it repairs and sweeps
    checkpoint.load(ours, CPU)
    assert left_in(tmp_path) == ["other", "ours"]


def test_f95_what_a_killed_run_left_is_removed_and_what_another_fills_is_not(tmp_path):
    def work():
        checkpoint.write_config = die
        checkpoint.save(QwenVL(config()), tmp_path / "one")

    killed(work)
    assert len(left_in(tmp_path)) == 1
    with checkpoint.new_folder(tmp_path / "two") as filling:
        assert left_in(tmp_path) == [filling.name]
        checkpoint.save(QwenVL(config()), tmp_path / "three")
        (filling / "config.json").write_text("{}")
    assert left_in(tmp_path) == ["three", "two"]


@pytest.mark.parametrize("link", ["../secret", "/etc/hostname", "loop"])
def test_f95_a_link_out_of_the_folder_is_not_copied(ours, tmp_path, link):
    (tmp_path / "secret").write_text("key")
    (ours / "loop").symlink_to("loop")
    (ours / "LICENSE").symlink_to(link)
    refused(lambda: convert(ours, tmp_path / "new"), "LICENSE")
    assert not (tmp_path / "new").exists()


def test_links_of_the_hub_cache_are_files_of_the_folder(ours, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (ours / "LICENSE").write_text("free")
    for number, file in enumerate(sorted(ours.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    convert(snapshot, tmp_path / "new")
    assert (tmp_path / "new" / "LICENSE").read_text() == "free"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    model = QwenVL(config())
    refused(
        lambda: checkpoint.save(model, tmp_path / "file" / "new"),
        "cannot write",
        "give a folder you may write to",
    )
    refused(lambda: checkpoint.save(model, tmp_path / "file"), "file is a file; give a new folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_things_is_never_replaced(tmp_path, ours):
    (ours / "notes.txt").write_text("mine")
    refused(lambda: checkpoint.save(QwenVL(config()), ours), "holds notes.txt, which is no part of a model")
    assert (ours / "notes.txt").read_text() == "mine"


def test_what_has_no_official_form(tmp_path, ours):
    refused(
        lambda: convert(ours, tmp_path / "new", to="official"),
        "adapter.heads is 2",
        "no official form",
    )
    refused(lambda: convert(ours, tmp_path / "new", to="gguf"), "cannot convert to 'gguf'")
    assert left_in(tmp_path) == ["ours"]


def test_the_command(official, tmp_path, qwenvl):
    done = qwenvl("convert", official, tmp_path / "ours")
    assert done.returncode == 0 and "qwenvl format" in done.stdout
    back = qwenvl("convert", tmp_path / "ours", tmp_path / "back", "--to", "official")
    assert back.returncode == 0
    assert (official / "config.json").read_bytes() == (tmp_path / "back" / "config.json").read_bytes()
    wrong = qwenvl("convert", tmp_path / "none", tmp_path / "x")
    assert (
        wrong.returncode == 2
        and wrong.stderr.startswith("qwenvl: error:")
        and "Traceback" not in wrong.stderr
    )
    assert left_in(tmp_path) == ["back", "official", "ours"]
