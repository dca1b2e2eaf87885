// Redirects the calls of torch's C shim that have no meaning on the host (device guard, CUDA stream) and those that are
// counted (the dispatcher) to cuda_on_host.cpp. Injected into the .cu files with -include, before any torch header.
#pragma once

#define aoti_torch_create_device_guard cuda_on_host_create_device_guard
#define aoti_torch_delete_device_guard cuda_on_host_delete_device_guard
#define aoti_torch_get_current_cuda_stream cuda_on_host_current_stream
#define torch_call_dispatcher cuda_on_host_call_dispatcher
