/* The C interface: one shared library, libtessera, that any language can call.
 *
 *   tessera_moe_config config;
 *   tessera_moe_config_init(&config);
 *   config.hidden_size = 2048; ...
 *   tessera_moe* layer = NULL;
 *   if (tessera_moe_create(&config, &weights, &layer) != TESSERA_OK) report(tessera_last_error());
 *
 * Every function that can fail returns a status; the message of the calling thread's last failure says where, what was
 * got and what was expected. Nothing is printed, nothing exits, no exception leaves the library, and outputs of a call
 * that failed are not touched, except that a device which fails while it works may leave anything in memory of a run.
 *
 * Structures carry their size in their first member: that of the header which a program was built with.
 * tessera_..._init is compiled into the program and hands its size to tessera_..._init_sized, which writes the size and
 * the defaults and not a byte behind them; other languages call that one with the size of what they laid out. A program
 * built with an older header keeps working, members that it does not know have their default; a structure larger than
 * the library's is refused. Objects may be used by several threads, one at a time, unless a function says more.
 * `device` is TESSERA_CPU or the number of a CUDA device; the device current in the calling thread is left as it was.
 */
#ifndef TESSERA_TESSERA_H_
#define TESSERA_TESSERA_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TESSERA_API __attribute__((visibility("default")))
#define TESSERA_INLINE static __inline__ /* also for C89 */
#else
#define TESSERA_API
#define TESSERA_INLINE static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tessera_status {
  TESSERA_OK = 0,
  TESSERA_INVALID_ARGUMENT = 1, /* a value, size, pointer or file's content that cannot be right */
  TESSERA_UNAVAILABLE = 2,      /* right, but not on this machine or in this build: no Hopper GPU, no CUDA, no bf16 */
  TESSERA_OUT_OF_MEMORY = 3,
  TESSERA_DEVICE_FAILED = 4, /* a CUDA error: the process should stop using that device */
  TESSERA_INTERNAL = 5,      /* a fault of the library itself: please report it */
  TESSERA_STOPPED = 6        /* tessera_set_stop's flag said so: what the call was to write is not whole */
} tessera_status;

typedef enum tessera_dtype { TESSERA_F32 = 0, TESSERA_F16 = 1, TESSERA_BF16 = 2 } tessera_dtype;

enum { TESSERA_CPU = -1 };

/* "0.1.0". */
TESSERA_API const char* tessera_version(void);

/* "<where>: got <got>, expected <expected>" of the calling thread's last failure; "" before the first. Valid until the
 * thread's next failure. */
TESSERA_API const char* tessera_last_error(void);

/* The <where> of that message: the argument, member, file or tensor. "" where there is none. */
TESSERA_API const char* tessera_last_error_where(void);

/* Lets another thread end long calls of the calling one: while `*flag` is not 0, its tessera_classifier_load, and on
 * the CPU its tessera_moe_run and tessera_moe_prepare_weights, return TESSERA_STOPPED at the next piece of work. The
 * flag is looked at until the thread ends or gives another one; NULL: none. */
TESSERA_API void tessera_set_stop(const int32_t* flag);

/* How many CUDA devices this process sees; 0 also for a build without CUDA or a machine without a driver. */
TESSERA_API int32_t tessera_num_devices(void);

/* TESSERA_OK if layers and classifiers run on `device`, else TESSERA_UNAVAILABLE with the reason as the last error. */
TESSERA_API tessera_status tessera_device_check(int32_t device);

/* The name of a CUDA device, or of the CPU back end with its matrix library: "NVIDIA H100 80GB HBM3", "CPU, oneDNN
 * 2.6.3". Writes at most `capacity` bytes, the closing NUL included; longer names are cut. */
TESSERA_API tessera_status tessera_device_name(int32_t device, char* name, size_t capacity);

/* Memory of a device for whoever has no allocator of its own: 256-byte aligned, contents undefined. 0 bytes give NULL,
 * and NULL may be freed. Freeing memory of a CUDA device waits for the work that uses it. */
TESSERA_API tessera_status tessera_allocate(int32_t device, size_t bytes, void** memory);
TESSERA_API void tessera_free(int32_t device, void* memory);

#ifdef __cplusplus
}
#endif

#include "tessera/tessera_classifier.h" /* IWYU pragma: export */
#include "tessera/tessera_moe.h"        /* IWYU pragma: export */

#endif
