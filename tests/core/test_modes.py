"""The same results under torch.compile, gradient checkpointing, bf16, DDP and FSDP2."""

import os
import socket

import pytest
import torch
import zoo
from torch import nn

import monochord as mc
from monochord.adapt import IA3, BottleneckAdapter, DoRA, FullTuning, LoRA, PromptTokens
from monochord.core.tuner import Tuned

TUNERS = {
    "lora": LoRA(rank=2, sites="blocks.*.attn.{q,v,o}.weight"),
    "dora": DoRA(rank=2),
    "adapter": BottleneckAdapter(bottleneck=4),
    "ia3": IA3(),
    "full": FullTuning(),
    "prompt": PromptTokens(3),
}


def stir(tuned: Tuned) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(tuned.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))


def gradients(model: nn.Module, given: zoo.Batch, tuned: Tuned) -> list[torch.Tensor]:
    for parameter in tuned.parameters():
        parameter.grad = None
    model(**given).logits.float().square().mean().backward()
    return [p.grad.clone() for p in tuned.parameters()]


def test_a_hook_after_compilation_is_not_ignored() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    compiled = torch.compile(model, backend="eager")
    before = zoo.run(compiled, given)
    with mc.attach(compiled, {"blocks.0:out": mc.Scale(0.5)}):
        inside = zoo.run(compiled, given)
        assert torch.equal(inside, zoo.run(model, given)) and not torch.equal(inside, before)
    assert torch.equal(zoo.run(compiled, given), before)
    with mc.capture(compiled, ["blocks.*:out", "blocks.0.attn:pattern"]) as acts:
        zoo.run(compiled, given)
    assert acts["blocks.1:out"].shape == (2, 8, 32) and acts["blocks.0.attn:pattern"].shape == (2, 4, 8, 8)


@pytest.mark.parametrize("name", TUNERS)
def test_compiled_tuners(name: str) -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    compiled = torch.compile(model, backend="eager")
    before = zoo.run(compiled, given)
    with TUNERS[name].attach(compiled) as tuned:
        stir(tuned)
        torch.testing.assert_close(zoo.run(compiled, given), zoo.run(model, given))
        assert not torch.allclose(zoo.run(compiled, given), before)
        for ours, plain in zip(gradients(compiled, given, tuned), gradients(model, given, tuned), strict=True):
            torch.testing.assert_close(ours, plain)
        with tuned.disabled():
            torch.testing.assert_close(zoo.run(compiled, given), before)
    assert torch.equal(zoo.run(compiled, given), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", TUNERS)
def test_gradient_checkpointing(name: str, reentrant: bool) -> None:
    model, given = zoo.build("llama").train(), zoo.batch("llama")
    with TUNERS[name].attach(model) as tuned:
        stir(tuned)
        plain = gradients(model, given, tuned)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:  # which needs an input with a gradient, as transformers' Trainer arranges
            model.enable_input_require_grads()
        for ours, wanted in zip(gradients(model, given, tuned), plain, strict=True):
            torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_bf16_models(name: str, model_name: str) -> None:
    given = zoo.batch(model_name)
    exact, half = zoo.build(model_name), zoo.build(model_name).bfloat16()
    results = []
    for model in (exact, half):
        before = zoo.run(model, given)
        with TUNERS[name].attach(model) as tuned:
            stir(tuned)
            results.append(zoo.run(model, given))
            assert all(torch.isfinite(g).all() for g in gradients(model, given, tuned))
        assert torch.equal(zoo.run(model, given), before)
    assert results[1].dtype == torch.bfloat16
    torch.testing.assert_close(results[1].float(), results[0], atol=0.15, rtol=0.15)


def test_autocast() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    with (LoRA(rank=2) | BottleneckAdapter(bottleneck=4)).attach(model) as tuned:
        stir(tuned)
        exact = zoo.run(model, given)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(zoo.run(model, given).float(), exact, atol=0.1, rtol=0.1)
            assert all(g.dtype == torch.float32 for g in gradients(model, given, tuned))


def _train(rank: int, mode: str, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, given = zoo.build("llama"), zoo.batch("llama")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    tuner = TUNERS["lora"] | TUNERS["adapter"] | DoRA(rank=2, sites="blocks.*.mlp.up.weight")
    tuned = tuner.attach(model, name="t")
    if mode == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped: nn.Module = fully_shard(model, mesh=mesh)
    else:
        wrapped = nn.parallel.DistributedDataParallel(model)
    mine = {k: v[rank : rank + 1] for k, v in given.items()}
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert len(trained) == len(tuned.trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(**mine).logits.square().mean().backward()
        optimizer.step()
    state = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.named_parameters()}
    plain = {n.replace("parametrizations.", "").replace(".original", ""): p.detach() for n, p in state.items()}
    assert all(torch.equal(plain[n], v) for n, v in frozen.items())
    if rank == 0:
        from safetensors.torch import save_file

        save_file({n: p.contiguous() for n, p in plain.items() if n not in frozen}, f"{folder}/{mode}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_train_alike_with_ddp_and_fsdp(tmp_path) -> None:
    """Both give, on halves of the batch, what one process gives on the whole, and leave frozen weights alone."""
    from safetensors.torch import load_file

    for mode in ("ddp", "fsdp"):
        torch.multiprocessing.spawn(_train, (mode, _free_port(), str(tmp_path)), nprocs=2)
    model, given = zoo.build("llama"), zoo.batch("llama")
    tuner = TUNERS["lora"] | TUNERS["adapter"] | DoRA(rank=2, sites="blocks.*.mlp.up.weight")
    with tuner.attach(model, name="t") as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(**given).logits.square().mean().backward()
            optimizer.step()
        alone = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        for mode in ("ddp", "fsdp"):
            found = load_file(tmp_path / f"{mode}.safetensors")
            assert found.keys() == alone.keys()
            for n, p in alone.items():
                torch.testing.assert_close(found[n], p, atol=1e-4, rtol=1e-4)
