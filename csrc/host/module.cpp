// deeprec._host: data work and ranking on the NumPy side. Optional: each function has a slower fallback in Python.
#include <pybind11/pybind11.h>

void bind_slim(pybind11::module_& module);
void bind_table(pybind11::module_& module);
void bind_log(pybind11::module_& module);
void bind_vocabulary(pybind11::module_& module);
void bind_ranking(pybind11::module_& module);

PYBIND11_MODULE(_host, module) {
  module.doc() = "Fast parts on the NumPy side";
  bind_slim(module);
  bind_table(module);
  bind_log(module);
  bind_vocabulary(module);
  bind_ranking(module);
}
