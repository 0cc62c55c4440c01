// Any processor: a value is one float or double, exp is the C library's.
#include "cpu/kernels.h"

namespace maspo {
const CpuKernels kPlainKernels = kernels_of<float, float, double>("plain");
}
