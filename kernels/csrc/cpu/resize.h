/* The uint8 bicubic resize with antialias of torch's `interpolate`, as a plain C library without torch.
 *
 * Pictures are uint8 RGB, interleaved, C order: frames x height x width x 3. The result equals, byte for byte,
 * torch.nn.functional.interpolate(uint8, mode="bicubic", antialias=True, align_corners=False).
 *
 * Next: resize.cpp
 */
#ifndef TESSERA_RESIZE_H
#define TESSERA_RESIZE_H

#include <stdint.h>

#define TESSERA_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Which inner loops run. AUTO takes the widest that the processor has; all give the same bytes. */
enum tessera_resize_variant { TESSERA_RESIZE_AUTO = 0, TESSERA_RESIZE_SCALAR = 1, TESSERA_RESIZE_AVX2 = 2 };

/* Number of this interface; a loader refuses another. */
TESSERA_EXPORT int tessera_resize_abi(void);

/* The variant that AUTO stands for on this processor. */
TESSERA_EXPORT int tessera_resize_best_variant(void);

/* Resize `frames` pictures of height x width to out_height x out_width.
 *
 * source: frames * height * width * 3 bytes; target: frames * out_height * out_width * 3 bytes; they do not overlap.
 * Returns 0; 1 for a size below 1 or a variant that this processor lacks; 2 where memory runs out.
 */
TESSERA_EXPORT int tessera_resize_u8(const uint8_t* source, int64_t frames, int64_t height, int64_t width,
                                     uint8_t* target, int64_t out_height, int64_t out_width, int variant);

#ifdef __cplusplus
}
#endif

#endif
