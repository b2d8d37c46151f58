/* Compiles a model to a blob of an Intel NPU; no NPU is needed.
   Usage: MODEL BLOB NAME=VALUE..., where names and values are OpenVINO's properties, among them
   NPU_PLATFORM.

   Of OpenVINO's packages only those for Windows hold the NPU compiler, so this is a Windows
   program; under wine it runs on Linux. It lies beside the wheel's libraries and loads
   openvino_c.dll there. On failure it prints the reason and ends with exit code 1. */
#include <stdio.h>
#include <string.h>
#include <windows.h>

typedef int (*CoreCreate)(void **core);
typedef int (*CompileFromFile)(void *core, const char *model, const char *device,
                               size_t property_args, void **compiled, ...);
typedef int (*SetProperty)(void *core, const char *device, ...);
typedef int (*ExportModel)(void *compiled, const char *path);
typedef const char *(*LastError)(void);

static LastError last_error;

static int fail(const char *what) {
  const char *why = last_error ? last_error() : "";
  printf("%s: %s\n", what, why ? why : "");
  return 1;
}

int main(int count, char **arguments) {
  if (count < 4) {
    printf("usage: ov_npu_compile.exe MODEL BLOB NAME=VALUE...\n");
    return 1;
  }
  HMODULE library = LoadLibraryA("openvino_c.dll");
  if (!library) {
    printf("openvino_c.dll cannot be loaded: Windows error %lu\n", GetLastError());
    return 1;
  }
  CoreCreate create = (CoreCreate)GetProcAddress(library, "ov_core_create");
  CompileFromFile compile =
      (CompileFromFile)GetProcAddress(library, "ov_core_compile_model_from_file");
  SetProperty set_property = (SetProperty)GetProcAddress(library, "ov_core_set_property");
  ExportModel export_model = (ExportModel)GetProcAddress(library, "ov_compiled_model_export_model");
  last_error = (LastError)GetProcAddress(library, "ov_get_last_err_msg");
  if (!create || !compile || !set_property || !export_model)
     return fail("openvino_c.dll lacks a function");
  void *core = NULL, *compiled = NULL;
  if (create(&core)) return fail("OpenVINO cannot start");
  if (set_property(core, "NPU", "NPU_COMPILER_TYPE", "PLUGIN")) return fail("no NPU compiler");
  for (int i = 3; i < count; i++) {
    char *value = strchr(arguments[i], '=');
    if (!value) return fail("a property has no value");
    *value++ = 0;
    if (set_property(core, "NPU", arguments[i], value)) return fail(arguments[i]);
  }
  if (compile(core, arguments[1], "NPU", 0, &compiled)) return fail("the NPU compiler failed");
  if (export_model(compiled, arguments[2])) return fail("the blob cannot be written");
  return 0;
}
