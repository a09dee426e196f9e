"""vLLM's second model runner, which is the default on GPUs, on a CPU:   python second_runner.py JOB RESULT

Its triton kernels run in triton's interpreter. It is eager: compiled, it does not run there. The longest prompt does
not fit into one step, so it comes in two chunks, as on a GPU. The job is done by two engines, one after the other:
{"synchronous": with the CPU's scheduler, "asynchronous": with the one that GPUs have}.
"""

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import triton.backends  # noqa: E402

# vLLM uses triton only if it has a backend that is active; the interpreter then never calls it.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)

from steered_job import run_job, write_result  # noqa: E402
from vllm.config import VllmConfig  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402

original = CpuPlatform.check_and_update_config.__func__


def check_and_update_config(cls: type[CpuPlatform], config: VllmConfig) -> None:
    """The platform's own, which switches asynchronous scheduling off."""
    original(cls, config)
    config.scheduler_config.async_scheduling = True


if __name__ == "__main__":
    synchronous = run_job(enforce_eager=True, max_num_batched_tokens=64)
    cleanup_dist_env_and_memory()
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    asynchronous = run_job(enforce_eager=True, max_num_batched_tokens=64)
    write_result({"synchronous": synchronous, "asynchronous": asynchronous})
