"""The kernels' source goes through NVRTC as it is: no host header, no standard library. Needs no GPU."""

import pytest
from cupy.cuda import nvrtc

from build_tools import flags

SOURCE = """
#include "cuda/backward.cuh"
#include "cuda/bapo.cuh"
#include "cuda/forward.cuh"
#include "cuda/logprob.cuh"
#include "cuda/scale.cuh"
namespace maspo {
template __global__ void forward_kernel<ClipHyper, AnySteps<float, ClipHyper<float>>>(LossParams, Cut, unsigned*);
template __global__ void forward_kernel<DacHyper, PlainSteps<Float32, DacHyper<float>, ByteMask>>(LossParams, Cut, unsigned*);
template __global__ void forward_kernel<MaspoHyper, PlainSteps<BFloat16, MaspoHyper<float>, WideMask<8>>>(LossParams, Cut, unsigned*);
template __global__ void forward_kernel<SapoHyper, AnySteps<double, SapoHyper<double>>>(LossParams, Cut, unsigned*);
template __global__ void backward_kernel<BFloat16>(BackwardParams);
template __global__ void bapo_sums_kernel<float>(BapoParams, Cut);
template __global__ void logprob_kernel<BFloat16>(LogprobParams);
template __global__ void logprob_kernel<Float64>(LogprobParams);
template __global__ void logprob_grad_kernel<Float16, Float16>(LogprobGradParams, GradBlocks);
template __global__ void logprob_grad_kernel<Float32, BFloat16>(LogprobGradParams, GradBlocks);
template __global__ void scale_kernel<BFloat16>(ScaleParams);
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
