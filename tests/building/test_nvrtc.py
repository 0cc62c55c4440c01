"""The kernels' source goes through NVRTC as it is: no host header, no standard library. Needs no GPU."""

import pytest
from cupy.cuda import nvrtc

from build_tools import flags

SOURCE = """
#include "cuda/backward.cuh"
#include "cuda/bapo.cuh"
#include "cuda/forward.cuh"
#include "cuda/logprob.cuh"
namespace maspo {
template __global__ void forward_kernel<float, ClipHyper>(LossParams, unsigned*);
template __global__ void forward_kernel<float, DacHyper>(LossParams, unsigned*);
template __global__ void forward_kernel<float, MaspoHyper>(LossParams, unsigned*);
template __global__ void forward_kernel<double, SapoHyper>(LossParams, unsigned*);
template __global__ void backward_kernel<BFloat16>(BackwardParams);
template __global__ void bapo_sums_kernel<float>(BapoParams);
template __global__ void logprob_kernel<BFloat16>(LogprobParams);
template __global__ void logprob_kernel<Float64>(LogprobParams);
template __global__ void logprob_grad_kernel<Float16, Float16>(LogprobGradParams);
template __global__ void logprob_grad_kernel<Float32, BFloat16>(LogprobGradParams);
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", flags.GPU_ARCHITECTURES)
def test_nvrtc_compiles_the_kernels(architecture):
    program = nvrtc.createProgram(SOURCE, "kernels.cu", (), ())
    options = (f"-I{flags.CSRC}", f"--std={flags.CXX_STANDARD}", f"-arch=sm_{architecture}")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 10_000
