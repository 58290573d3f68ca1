#include "moe/formats.h"

#include <algorithm>
#include <array>
#include <string>

#include "moe/judge/oracle.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

double decode_dense(const void* weights, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(weights)[index];
  const uint16_t bits = static_cast<const uint16_t*>(weights)[index];
  return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

double decode_e4m3(const void* weights, DType, int64_t index) {
  return e4m3_to_f32(static_cast<const uint8_t*>(weights)[index]);
}

constexpr std::array kFormats = {
    FormatRow{WeightFormat::dense, "dense", 0, 0, 0, DType::f32, decode_dense, kWgmmaAccumulatorUnit},
    FormatRow{WeightFormat::fp8_block, "fp8-block", 8, kScaleGroup, kScaleGroup, DType::f32, decode_e4m3,
              kE4m3AccumulatorUnit, kScaleGroup, kScaleGroup},
    FormatRow{WeightFormat::fp8_channel, "fp8-channel", 8, 1, kWholeRow, DType::f32, decode_e4m3, kE4m3AccumulatorUnit,
              kWholeRow, kScaleGroup},
};

std::string all_names() {
  std::string names;
  for (const FormatRow& row : kFormats) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

Error no_format(int64_t number) {
  return Error("weight_format", str_cat(number), "the number of one of " + all_names());
}

}  // namespace

std::span<const FormatRow> format_rows() { return kFormats; }

const FormatRow& format_row(WeightFormat format) {
  for (const FormatRow& row : kFormats) {
    if (row.format == format) return row;
  }
  throw no_format(static_cast<int64_t>(format));
}

int32_t width_multiple(const FormatRow& row) {
  constexpr int32_t kVectorBits = 8 * static_cast<int32_t>(kAlignment);
  return row.bits == 0 ? kWidthMultiple : std::max(kWidthMultiple, kVectorBits / row.bits);
}

size_t weight_bytes(const FormatRow& row, DType dtype, int64_t rows, int64_t columns) {
  const auto bits = row.bits != 0 ? static_cast<size_t>(row.bits) : 8 * dtype_size(dtype);
  return static_cast<size_t>(rows) * ((static_cast<size_t>(columns) * bits + 7) / 8);
}

size_t scale_bytes(const FormatRow& row, int64_t rows, int64_t columns) {
  if (!row.has_scales()) return 0;
  return static_cast<size_t>(scale_groups(rows, row.scale_block_rows) *
                             scale_groups(columns, row.scale_block_columns)) *
         dtype_size(row.scale_dtype);
}

int64_t num_token_groups(const FormatRow& row, int64_t columns) {
  return row.quantizes_rows() ? scale_groups(columns, row.token_group) : 0;
}

ScaleExtent gate_up_scale_extent(const LayerConfig& config) {
  const int64_t parts = config.gated ? 2 : 1;
  const int32_t offset = std::max(config.scale_offsets.gate, config.scale_offsets.up);
  return {config.num_experts * parts, int64_t{config.intermediate_size} + offset, config.hidden_size};
}

ScaleExtent down_scale_extent(const LayerConfig& config) {
  return {config.num_experts, config.hidden_size, int64_t{config.intermediate_size} + config.scale_offsets.down};
}

ScaleExtent shared_gate_up_scale_extent(const LayerConfig& config) {
  return {config.gated ? 2 : 1, config.shared_intermediate_size, config.hidden_size};
}

ScaleExtent shared_down_scale_extent(const LayerConfig& config) {
  return {1, config.hidden_size, config.shared_intermediate_size};
}

size_t scale_bytes(const FormatRow& row, const ScaleExtent& extent) {
  return static_cast<size_t>(extent.matrices) * scale_bytes(row, extent.rows, extent.columns);
}

WeightFormat weight_format(int64_t number) {
  for (const FormatRow& row : kFormats) {
    if (static_cast<int64_t>(row.format) == number) return row.format;
  }
  throw no_format(number);
}

std::string_view weight_format_name(WeightFormat format) { return format_row(format).name; }

WeightFormat parse_weight_format(std::string_view name, const char* where) {
  for (const FormatRow& row : kFormats) {
    if (row.name == name) return row.format;
  }
  throw Error(where, "'" + std::string(name) + "'", "one of " + all_names());
}

}  // namespace tessera::moe
