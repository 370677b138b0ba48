/*
 * A libnvidia-ml.so.1 for tests, with the functions that edgedistill/measure/sensors.py calls.
 *
 *     g++ -std=c++17 -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 nvml.cpp -o libnvidia-ml.so.1
 *
 * Its only GPU uses 50 W at idle and 30 W more for as long as the process computes, because an emulated kernel runs on
 * the CPU. ED_FAKE_NVML=CODE makes the energy counter fail with that code, as on a GPU that has none (3).
 */
#include <cstdlib>
#include <ctime>

#define FAKE_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr double idle_w = 50, busy_w = 30;

double milliseconds(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

} // namespace

FAKE_API int nvmlInit_v2() { return 0; }

FAKE_API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    static int gpu;
    *device = &gpu;
    return index == 0 ? 0 : 2; /* 2: invalid argument */
}

FAKE_API int nvmlDeviceGetTotalEnergyConsumption(void *, unsigned long long *millijoules) {
    if (const char *code = std::getenv("ED_FAKE_NVML")) return std::atoi(code);
    *millijoules = static_cast<unsigned long long>(idle_w * milliseconds(CLOCK_MONOTONIC) +
                                                   busy_w * milliseconds(CLOCK_PROCESS_CPUTIME_ID));
    return 0;
}
