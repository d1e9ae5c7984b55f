"""Real launches: four processes, two nodes on loopback, and networks spread over two."""

import json
import pickle
import runpy
import socket
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from processes import Started, launch, together
from tiny import network
from torch.distributed.run import main as torchrun

from lightning_biaskd import ClassificationModule, UserError
from lightning_biaskd.training.checks import check_accumulation

ROOT = Path(__file__).parents[1]
SHARED = """
    import json, os, sys, warnings
    import torch
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from tiny import TinyData, network, snapshot, unchanged
    from torch import nn
    from lightning_biaskd import DKD, BiasStrategy, DistillationModule
    from lightning_biaskd.distillers import FitNet
    from lightning_biaskd.models import CIFARResNet
    warnings.simplefilter("ignore")
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
"""

spreads_on_cpu = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch spreads networks over accelerators only"
)


def run_program(code, processes, folder):
    program = write(code, folder)
    launch(runpy.run_path, str(program), ranks=processes, folder=folder)


def write(code, folder):
    program = folder / "program.py"
    program.write_text(textwrap.dedent(SHARED) + textwrap.dedent(code))
    return program


def test_four_processes_neither_send_nor_change_the_teacher(tmp_path):
    """With SyncBatchNorm on (the student has none, as on a CPU it doesn't run), static graph and bucket views."""
    code = """
        student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))
        teacher = network(width=8)
        before = snapshot(teacher)
        module = DistillationModule(student, teacher, DKD(), BiasStrategy.paper("swap"))
        sent = {"gradients": [], "buffers": 0, "counts": []}

        class Count(Callback):
            def on_train_start(self, trainer, pl_module):
                ddp = trainer.strategy.model
                names = {name for name, _ in [*ddp.module.named_parameters(), *ddp.module.named_buffers()]}
                sent["names"] = sorted(names)
                def hook(state, bucket):
                    sent["gradients"].append(bucket.buffer().nbytes)
                    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
                    return allreduce_hook(None, bucket)
                ddp.register_comm_hook(None, hook)
                reduce = torch.distributed.all_reduce
                def counted(tensor, *args, **kwargs):
                    sent["counts"].append(tensor.nbytes)
                    return reduce(tensor, *args, **kwargs)
                torch.distributed.all_reduce = counted

            def on_train_batch_end(self, trainer, pl_module, *_):
                sent["steps"] = trainer.global_step

            def on_train_epoch_end(self, trainer, pl_module):
                sent.setdefault("in training", list(sent["counts"]))

        strategy = DDPStrategy(static_graph=True, gradient_as_bucket_view=True, process_group_backend="gloo")
        trainer = Trainer(devices=4, strategy=strategy, sync_batchnorm=True, max_epochs=1, limit_val_batches=0,
                          callbacks=[Count()], enable_checkpointing=False, **quiet)
        trainer.fit(module, TinyData(batch_size=4))
        assert unchanged(before, teacher)
        assert any(type(m) is nn.BatchNorm2d for m in teacher.modules())
        trainer.save_checkpoint("run.ckpt")
        if trainer.is_global_zero:
            json.dump(sent, open("sent.json", "w"))
    """
    run_program(code, 4, tmp_path)
    sent = json.loads((tmp_path / "sent.json").read_text())
    student = 4 * (9 * 4 + 4 + 64 * 6 + 6)
    assert sent["steps"] == 3
    assert sum(sent["gradients"]) == sent["steps"] * student
    beyond_stopping = [size for size in sent["in training"] if size != 8]  # 8 bytes agree on whether to stop
    assert beyond_stopping == [16, student] * sent["steps"]  # two counts and the gradients, in each step
    assert not any("teacher" in name for name in sent["names"])
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    saved = sum(value.numel() * 4 for value in checkpoint["state_dict"].values())
    momentum = sum(
        state["momentum_buffer"].numel() * 4 for state in checkpoint["optimizer_states"][0]["state"].values()
    )
    assert saved == momentum == student


@spreads_on_cpu
def test_networks_are_spread_over_two_processes(tmp_path):
    """By FSDP2; the checkpoint is whole."""
    code = """
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 6))
        module = DistillationModule(student, network(width=8), DKD(), BiasStrategy.paper("swap"))
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        trainer = Trainer(devices=2, strategy=strategy, max_epochs=1, enable_checkpointing=False, **quiet)
        trainer.fit(module, TinyData(batch_size=4))
        kinds = {type(p).__name__ for net in (module.student, module.teacher.model) for p in net.parameters()}
        assert kinds == {"DTensor"}, kinds
        full = {name: p.full_tensor() for name, p in module.student.named_parameters()}
        trainer.save_checkpoint("run.ckpt")
        if trainer.is_global_zero:
            torch.save(full, "full.pt")
    """
    run_program(code, 2, tmp_path)
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("model.") for name in saved} == set(full)
    for name, value in full.items():
        assert torch.equal(saved[f"model.{name}"], value)


@spreads_on_cpu
def test_what_a_method_learns_is_trained_beside_spread_networks_as_under_ddp(tmp_path):
    code = """
        rank = os.environ["RANK"]
        for kind, strategy in (
            ("spread", ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)),
            ("whole", DDPStrategy(process_group_backend="gloo")),
        ):
            torch.manual_seed(int(rank))  # the first process's networks are the ones that count
            student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))
            module = DistillationModule(student, network(width=8), FitNet(["0"], ["0"]), BiasStrategy.paper("swap"))
            module.rehearse(torch.zeros(2, 1, 6, 6))
            module.teacher.model.load_state_dict(torch.load("teacher.pt", weights_only=True))
            trainer = Trainer(devices=2, strategy=strategy, max_epochs=2, enable_checkpointing=False, **quiet)
            trainer.fit(module, TinyData(batch_size=4))
            whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in module.named_parameters()}
            torch.save({n: p.detach() for n, p in whole.items()}, kind + rank + ".pt")
    """
    torch.save(network(width=8).state_dict(), tmp_path / "teacher.pt")
    run_program(code, 2, tmp_path)
    expected = torch.load(tmp_path / "whole0.pt", weights_only=True)
    assert any(name.startswith("distiller.") for name in expected)
    for rank in range(2):
        spread = torch.load(tmp_path / f"spread{rank}.pt", weights_only=True)
        assert spread.keys() == expected.keys()
        for name, value in spread.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["EMA", "cache"])
def test_what_spread_networks_cannot_have_is_refused(what, tmp_path):
    code = f"""
        import pytest
        from lightning_biaskd import EMA, UserError
        cache = "cache" if {what!r} == "cache" else None
        module = DistillationModule(network(), network(), bias=None, teacher_cache=cache)
        strategy = ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
        trainer = Trainer(devices=1, strategy=strategy, max_epochs=1, enable_checkpointing=False,
                          callbacks=[EMA()] if {what!r} == "EMA" else [], **quiet)
        with pytest.raises(UserError, match="spread over processes"):
            trainer.fit(module, TinyData())
    """
    run_program(code, 1, tmp_path)


@spreads_on_cpu
def test_a_list_of_modules_is_spread_by_its_members(tmp_path):
    code = """
        from torch.distributed.device_mesh import init_device_mesh
        from lightning_biaskd.distributed.sharding import shard
        torch.distributed.init_process_group("gloo")
        class Blocks(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            def forward(self, x):
                for block in self.blocks:
                    x = block(x)
                return x
        net, x = Blocks(), torch.randn(2, 8)
        before = net(x)
        shard(net, init_device_mesh("cpu", (1,)), least=100)
        torch.testing.assert_close(net(x), before)
        torch.distributed.destroy_process_group()
    """
    run_program(code, 1, tmp_path)


def test_a_notebook_gets_the_weights_back(tmp_path):
    code = """
        module = DistillationModule(network(width=4), network(width=8), DKD(), BiasStrategy.paper("swap"))
        before, teacher = snapshot(module.student), snapshot(module.teacher.model)
        from lightning_biaskd.training.checkpoint import DurableCheckpointIO
        trainer = Trainer(devices=2, strategy="ddp_notebook", max_epochs=1, enable_checkpointing=False,
                          plugins=[DurableCheckpointIO()], **quiet)  # as on the command line
        trainer.fit(module, TinyData(batch_size=4))
        assert not unchanged(before, module.student)
        assert unchanged(teacher, module.teacher.model)
        assert 0 < trainer.callback_metrics["bias/wrong_rate"] <= 1
    """
    Started(runpy.run_path, str(write(code, tmp_path)), folder=tmp_path).finished()


@pytest.mark.parametrize(("static", "batches", "refused"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_a_static_graph_does_not_accumulate(static, batches, refused, trainer):
    run = trainer(devices=2, strategy=DDPStrategy(static_graph=static), accumulate_grad_batches=batches)
    if refused:
        with pytest.raises(UserError, match="--trainer.strategy.static_graph false"):
            check_accumulation(run)
    else:
        check_accumulation(run)


@pytest.mark.parametrize("receivers", [[0, 1], [1]], ids=["both", "one"])
def test_a_signal_to_the_ranks_stops_all_of_them_with_a_checkpoint(receivers, tmp_path):
    """Without a launcher that would stop the others."""
    code = f"""
        import signal
        from lightning.pytorch.callbacks import ModelCheckpoint
        rank = int(os.environ["RANK"])
        class Term(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if batch_idx == 2 and rank in {receivers}:
                    os.kill(os.getpid(), signal.SIGTERM)
        stopped = ModelCheckpoint("ckpt", "stopped", every_n_train_steps=1000, save_on_exception=True)
        trainer = Trainer(devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=9,
                          limit_val_batches=0, callbacks=[Term(), stopped], **quiet)
        trainer.fit(DistillationModule(network(), network(width=8)), TinyData(batch_size=4))
    """
    program = write(code, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in ("0", "1"):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        names |= {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
        ranks.append(Started(runpy.run_path, str(program), folder=tmp_path, **names))
    for rank in ranks:
        rank.process.join(120)
    # of a machine, the first process tells the status; a launcher kills it where another one fails before it
    assert [rank.process.exitcode for rank in ranks] == [143, 0], [rank.err.read_text() for rank in ranks]
    assert torch.load(tmp_path / "ckpt/stopped.ckpt", weights_only=True)["global_step"] == 3


def test_two_nodes_on_loopback_train_the_quickstart(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["-m", "lightning_biaskd", "fit", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.devices", "1", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]
    arguments += ["--trainer.enable_progress_bar", "false", "--data.batch_size", "32"]
    nodes = []
    for rank in range(2):
        node = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)]
        node += ["--master_addr", "127.0.0.1", "--master_port", port]
        nodes.append(Started(torchrun, [*node, *arguments], folder=tmp_path / f"node{rank}", PYTHONPATH=str(ROOT)))
    together(nodes)
    assert ["On the test images" in node.out.read_text() for node in nodes] == [True, False]
    last = torch.load(tmp_path / "node0/runs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 18  # 1,131 images in batches of 2 x 32


def test_a_module_with_the_default_optimizer_can_be_sent_to_spawned_processes():
    module = ClassificationModule(network())
    copied = pickle.loads(pickle.dumps(module))
    assert copied.optimizer(copied.parameters()).defaults["lr"] == 0.05
