// Any processor: a value is one float or double, exp is the C library's.
#include "cpu/engine.h"
#include "cpu/forward_unit.h"

namespace maspo {
const CpuKernels kPlainKernels = {"plain", forward_unit<float>, forward_unit<double>};
}
