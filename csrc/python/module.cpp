// An empty Python module of the limited API: importing it loads this library, whose static initialisers register the ops.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
