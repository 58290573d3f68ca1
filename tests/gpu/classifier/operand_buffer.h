// An operand in guarded device memory, and the host's view of it: what tests of the classifier's kernels upload, and
// compare with afterwards.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/core/operand.h"
#include "gpu/guarded_buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/dtype.h"

namespace tessera::testing {

using cta::Operand;

inline const char* operand_name(Operand kind) {
  switch (kind) {
    case Operand::f16: return "f16";
    case Operand::bf16: return "bf16";
    case Operand::split: return "split";
    default: return "f32";
  }
}

/// The bits of `value` in a plane of the kind, rounded to nearest even.
inline uint32_t operand_bits(Operand kind, int plane, float value) {
  if (kind == Operand::f32) return std::bit_cast<uint32_t>(value);
  if (kind == Operand::bf16) return f32_to_bf16(value);
  const uint16_t high = f32_to_f16(value);
  return plane == 0 ? high : f32_to_f16(value - f16_to_f32(high));
}

inline float bits_to_float(Operand kind, uint32_t bits) {
  if (kind == Operand::f32) return std::bit_cast<float>(bits);
  return kind == Operand::bf16 ? bf16_to_f32(static_cast<uint16_t>(bits)) : f16_to_f32(static_cast<uint16_t>(bits));
}

/// Largest |operand(v) - v| of an fp32 value |v| <= magnitude within the kind: half a unit in the last place, or of the
/// subnormal grid. The low part of a split has 11 bits of what the high part left, at most 2^-11 of the value.
inline double operand_rounding(Operand kind, double magnitude) {
  switch (kind) {
    case Operand::f16: return magnitude * 0x1p-11 + 0x1p-25;
    case Operand::bf16: return magnitude * 0x1p-8 + 0x1p-134;
    case Operand::split: return magnitude * 0x1p-22 + 0x1p-25;
    default: return 0.0;
  }
}

/// [planes][rows][stride] with a gap after each plane. Everything is poisoned; upload() leaves padding and gaps so.
class OperandBuffer {
 public:
  static constexpr int64_t kGap = 24;  // elements between planes

  OperandBuffer(Operand kind, int64_t rows, int64_t columns, int64_t stride)
      : kind_(kind),
        rows_(rows),
        columns_(columns),
        stride_(stride),
        memory_(static_cast<size_t>(cta::num_planes(kind) * plane_stride() * cta::element_bytes(kind))) {}

  cta::OperandView view() const { return {memory_.data(), kind_, stride_, plane_stride()}; }
  Operand kind() const { return kind_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  void poison() { memory_.poison(); }

  /// `values` [rows, columns], rounded. `pad`: columns up to the stride become zeros.
  void upload(const std::vector<float>& values, bool pad) {
    fetch();
    for (int plane = 0; plane < cta::num_planes(kind_); ++plane) {
      for (int64_t row = 0; row < rows_; ++row) {
        for (int64_t column = 0; column < (pad ? stride_ : columns_); ++column) {
          const float value = column < columns_ ? values[static_cast<size_t>(row * columns_ + column)] : 0.0f;
          set_bits(plane, row, column, operand_bits(kind_, plane, value));
        }
      }
    }
    memory_.upload(host_);
  }

  /// Copies what set_bits() made of the host's copy to the device.
  void upload_fetched() { memory_.upload(host_); }

  /// Copies the device's bytes to the host; the functions below look at that copy.
  void fetch() { host_ = memory_.download<uint8_t>(memory_.bytes()); }

  uint32_t bits(int plane, int64_t row, int64_t column) const {
    uint32_t bits = 0;
    std::memcpy(&bits, &host_[place(plane, row, column)], static_cast<size_t>(cta::element_bytes(kind_)));
    return bits;
  }
  void set_bits(int plane, int64_t row, int64_t column, uint32_t bits) {
    std::memcpy(&host_[place(plane, row, column)], &bits, static_cast<size_t>(cta::element_bytes(kind_)));
  }
  /// What a product sees: hi + lo of a split.
  double value(int64_t row, int64_t column) const {
    double sum = 0.0;
    for (int plane = 0; plane < cta::num_planes(kind_); ++plane) sum += bits_to_float(kind_, bits(plane, row, column));
    return sum;
  }
  const std::vector<uint8_t>& bytes() const { return host_; }

  /// What is wrong around the values: guards, gaps after planes, and columns [from, to) that are not +0; else empty.
  std::string margin_problem(int64_t from, int64_t to) const {
    if (!memory_.guards_intact()) return "a guard was written";
    const auto element = static_cast<size_t>(cta::element_bytes(kind_));
    for (int plane = 0; plane < cta::num_planes(kind_); ++plane) {
      for (size_t byte = place(plane, rows_, 0); byte < place(plane, rows_, 0) + kGap * element; ++byte) {
        if (host_[byte] != GuardedBuffer::kPoisonByte) return str_cat("the gap after plane ", plane, " was written");
      }
      for (int64_t row = 0; row < rows_; ++row) {
        for (int64_t column = from; column < to; ++column) {
          if (bits(plane, row, column) != 0)
            return str_cat("plane ", plane, " row ", row, " column ", column, " is not zero");
        }
      }
    }
    return "";
  }

 private:
  int64_t plane_stride() const { return rows_ * stride_ + kGap; }
  size_t place(int plane, int64_t row, int64_t column) const {
    return static_cast<size_t>((plane * plane_stride() + row * stride_ + column) * cta::element_bytes(kind_));
  }

  Operand kind_;
  int64_t rows_, columns_, stride_;
  GuardedBuffer memory_;
  std::vector<uint8_t> host_;
};

/// What `call` throws, or "no error".
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace tessera::testing
