/* An empty Python module, so that the usual build tools compile and place the library. Python calls nothing in it
 * through the module, but everything through ctypes. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "coder.h"
#include "predictive.h"
#include "prior.h"
#include "reconstruction.h"
#include "rounding.h"

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }

enum { ABI = 13 }; /* This number must be raised with every change that Python must follow. */

/* A number made of ABI and the size of each struct that Python hands over. Python compares it with its own, so that it
 * never calls a library that was built from other sources. */
API uint64_t perigee_abi(void) {
    static const size_t sizes[] = {sizeof(Coder), sizeof(Tables), sizeof(Pass),      sizeof(Layer), sizeof(Model),
                                   sizeof(Patch), sizeof(Costs),  sizeof(Transform), sizeof(Curve), sizeof(Band)};
    uint64_t abi = ABI;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) abi = 257 * abi + sizes[i];
    return abi;
}
