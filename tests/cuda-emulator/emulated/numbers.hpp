// Conversions between kinds of numbers, exact.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace emulated {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float f32_of_bf16(uint16_t value) { return of_bits((uint32_t)value << 16); }

inline float f32_of_f16(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000) << 16;
    uint32_t exponent = value >> 10 & 31;
    uint32_t part = value & 0x3ff;
    if (exponent == 31) return of_bits(sign | 0x7f800000 | part << 13);
    if (exponent == 0) {
        float small = (float)part * 0x1p-24f;
        return sign ? -small : small;
    }
    return of_bits(sign | (exponent + 112) << 23 | part << 13);
}

// To the nearest, ties to even; NaN becomes 0x7fff.
inline uint16_t bf16_of_f32(float value) {
    if (value != value) return 0x7fff;
    uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t f16_of_f32(float value) {
    if (value != value) return 0x7fff;
    uint32_t bits = bits_of(value);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // 65520 and more
    if (magnitude < 0x38800000) {
        // Below the least normal value 2^-14: units of 2^-24, which an addition rounds to.
        float units = of_bits(magnitude) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)nearbyintf(units));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((rounded >> 13) - (112 << 10)));
}

// To f32, towards 0; what is too large becomes infinite.
inline float cut(double value) {
    float near = (float)value;
    if (near != near || fabsf(near) > FLT_MAX) return near;
    return fabs((double)near) > fabs(value) ? of_bits(bits_of(near) - 1) : near;
}

// a * b + c of bf16, rounded once.
inline uint16_t bf16_fused(uint16_t a, uint16_t b, uint16_t c) {
    double product = (double)f32_of_bf16(a) * (double)f32_of_bf16(b);  // exact
    double addend = (double)f32_of_bf16(c);
    double sum = product + addend;
    // What the sum lost goes into its last bit, so that rounding it again is right.
    double back = sum - product;
    double lost = (product - (sum - back)) + (addend - back);
    if (lost != 0 && isfinite(sum)) {
        uint64_t bits;
        memcpy(&bits, &sum, sizeof bits);
        if ((bits & 1) == 0) {
            bool grows = (lost > 0) == (sum > 0);
            bits = grows ? bits | 1 : bits - 1;
            memcpy(&sum, &bits, sizeof bits);
        }
    }
    // To f32 with the same care: cut, and the last bit set where something was lost.
    float value = cut(sum);
    if ((double)value != sum && value == value && fabsf(value) <= FLT_MAX) value = of_bits(bits_of(value) | 1);
    return bf16_of_f32(value);
}

// To an integer; what is too large becomes the largest, NaN 0.
inline int32_t saturated(float value) {
    if (value != value) return 0;
    if (value >= 0x1p31f) return INT32_MAX;
    if (value < -0x1p31f) return INT32_MIN;
    return (int32_t)value;
}

}  // namespace emulated
