#include "classifier/cuda_weights.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cpu/mixture.h"
#include "cuda/kernels/implicit_gemm/launch.h"
#include "cuda/kernels/spectrum/launch.h"
#include "tessera/core/check.h"

namespace tessera::classifier {
namespace {

namespace implicit_gemm = kernels::implicit_gemm;
namespace spectrum = kernels::spectrum;

constexpr int64_t kRowsPerItem = 16;

// Rounds `values` into planes of 16-bit elements.
void round_row(cta::Operand kind, float scale, std::span<const float> values, uint16_t* high, uint16_t* low) {
  for (size_t i = 0; i < values.size(); ++i) {
    const float value = values[i] * scale;
    high[i] = kind == cta::Operand::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (kind == cta::Operand::split) low[i] = f32_to_f16(value - f16_to_f32(high[i]));
  }
}

// Calls body(row, values) for every row, `values` zeroed and filled by `source`.
void for_each_row(int64_t rows, int64_t stride, const RowSource& source, ThreadPool& pool,
                  const std::function<void(int64_t, std::span<const float>)>& body) {
  pool.run((rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    std::vector<float> values(static_cast<size_t>(stride));
    for (int64_t row = item * kRowsPerItem; row < std::min(rows, (item + 1) * kRowsPerItem); ++row) {
      std::fill(values.begin(), values.end(), 0.0f);
      source(row, values);
      body(row, values);
    }
  });
}

float largest_magnitude(int64_t rows, int64_t stride, const RowSource& source, ThreadPool& pool) {
  std::vector<float> largest(static_cast<size_t>(rows), 0.0f);
  for_each_row(rows, stride, source, pool, [&](int64_t row, std::span<const float> values) {
    for (const float value : values) {
      largest[static_cast<size_t>(row)] = std::max(largest[static_cast<size_t>(row)], std::abs(value));
    }
  });
  return largest.empty() ? 0.0f : *std::max_element(largest.begin(), largest.end());
}

// The power of two that brings `largest` into [2^13, 2^14).
float scale_for(float largest) {
  constexpr int kTargetExponent = 14;
  if (!(largest > 0)) return 1.0f;
  int exponent = 0;
  std::frexp(largest, &exponent);
  constexpr int kMostShift = 100;  // its inverse must be a normal number too
  return std::ldexp(1.0f, std::clamp(kTargetExponent - exponent, -kMostShift, kMostShift));
}

template <class T>
const T* upload(CudaBuffers& to, std::span<const T> values) {
  T* const memory = to.take<T>(static_cast<int64_t>(values.size()));
  if (!values.empty())
    TESSERA_CUDA_CHECK(cudaMemcpy(memory, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  return memory;
}

void copy_row(const Buffer<float>& matrix, int64_t row, int64_t columns, std::span<float> values) {
  std::copy_n(matrix.data() + row * columns, columns, values.begin());
}

// `keep_scale` leaves the weights as they are.
DeviceMatrix pack_matrix(CudaBuffers& to, cta::Operand kind, int64_t rows, int64_t stride, bool keep_scale,
                         const RowSource& source, ThreadPool& pool) {
  TESSERA_CHECK(kind != cta::Operand::f32 && stride % 8 == 0, rows, stride);
  float scale = 1.0f;
  if (!keep_scale && kind != cta::Operand::bf16) scale = scale_for(largest_magnitude(rows, stride, source, pool));
  const auto plane = static_cast<size_t>(rows * stride);
  Buffer<uint16_t> packed(plane * static_cast<size_t>(cta::num_planes(kind)));
  for_each_row(rows, stride, source, pool, [&](int64_t row, std::span<const float> values) {
    uint16_t* high = packed.data() + row * stride;
    round_row(kind, scale, values, high, high + (kind == cta::Operand::split ? plane : 0));
  });
  const cta::OperandView view = to.take_matrix(kind, rows, stride);
  TESSERA_CUDA_CHECK(cudaMemcpy(view.data, packed.data(), packed.size() * sizeof(uint16_t), cudaMemcpyHostToDevice));
  return {view, 1.0f / scale};
}

}  // namespace

CudaWeights::CudaWeights(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool) {
  pack_convolutions(model, form, input, pool);
  pack_experts(model, form, pool);
  pack_head(model, form, pool);
}

void CudaWeights::pack_convolutions(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool) {
  const ClassifierConfig& config = model.config;
  const CudaSizes sizes = cuda_sizes(config, form);
  const int64_t channels = config.embedding_size;
  std::vector<float> bias;
  for (const LinearWeights& layer : model.weights.conv) bias.insert(bias.end(), layer.bias.begin(), layer.bias.end());
  convolution_bias = upload<float>(buffers_, bias);
  CudaBuffers multiplied;  // of what vocab needs for its table alone
  CudaBuffers& kept = form.form == Form::vocab ? multiplied : buffers_;
  if (input == InputKind::ids) {
    embedding = pack_matrix(
        kept, form.convolutions, config.vocab_size, sizes.channels, true,
        [&](int64_t row, std::span<float> values) { copy_row(model.weights.embedding, row, channels, values); }, pool);
  }
  if (form.form == Form::dft) return pack_bins(model, form, pool);
  if (form.form == Form::direct) {
    for (size_t width = 0; width < config.filter_widths.size(); ++width) {
      const int64_t taps_of_width = config.filter_widths[width];
      const float* weight = model.weights.conv[width].weight.data();
      convolutions.push_back(pack_matrix(
          buffers_, form.convolutions, config.num_filters, implicit_gemm::weight_columns(channels, taps_of_width),
          false,
          [=](int64_t row, std::span<float> values) {
            const float* filter = weight + row * channels * taps_of_width;
            for (int64_t channel = 0; channel < channels; ++channel) {
              for (int64_t tap = 0; tap < taps_of_width; ++tap) {
                values[static_cast<size_t>(implicit_gemm::weight_column(channel, tap, taps_of_width))] =
                    filter[channel * taps_of_width + tap];
              }
            }
          },
          pool));
    }
    return;
  }
  // Taps of all widths, width after width; a tap is `sizes.filters` rows.
  std::vector<std::pair<size_t, int64_t>> tap_list;
  for (size_t width = 0; width < config.filter_widths.size(); ++width) {
    for (int64_t tap = 0; tap < config.filter_widths[width]; ++tap) tap_list.emplace_back(width, tap);
  }
  taps = pack_matrix(
      kept, form.convolutions, config.num_taps() * sizes.filters, sizes.channels, false,
      [&](int64_t row, std::span<float> values) {
        const auto [width, tap] = tap_list[static_cast<size_t>(row / sizes.filters)];
        const int64_t filter = row % sizes.filters;
        if (filter >= config.num_filters) return;
        const int64_t taps_of_width = config.filter_widths[width];
        const float* weight = model.weights.conv[width].weight.data() + filter * channels * taps_of_width;
        for (int64_t c = 0; c < channels; ++c) values[static_cast<size_t>(c)] = weight[c * taps_of_width + tap];
      },
      pool);
  if (form.form == Form::vocab) project_vocabulary(config, form);
}

void CudaWeights::pack_bins(const Model& model, const CudaForm& form, ThreadPool& pool) {
  const ClassifierConfig& config = model.config;
  const CudaSizes sizes = cuda_sizes(config, form);
  const auto positions = static_cast<int32_t>(config.sequence_length);
  const int64_t channels = config.embedding_size;
  twiddle = upload<float>(buffers_, spectrum::twiddle_table(positions));
  // Of one filter: the sum over its taps of w e^(-2 pi i b l / S) / S, per channel.
  const auto spectrum_row = [&](int64_t feature, int32_t bin, bool imaginary, float sign, std::span<float> values) {
    const auto width = static_cast<size_t>(feature / config.num_filters);
    const int64_t taps_of_width = config.filter_widths[width];
    const float* weight =
        model.weights.conv[width].weight.data() + feature % config.num_filters * channels * taps_of_width;
    std::vector<double> factors(static_cast<size_t>(taps_of_width));
    for (int64_t tap = 0; tap < taps_of_width; ++tap) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(bin * tap % positions) / positions;
      factors[static_cast<size_t>(tap)] = (imaginary ? -std::sin(angle) : std::cos(angle)) * sign / positions;
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      double sum = 0;
      for (int64_t tap = 0; tap < taps_of_width; ++tap) {
        sum += factors[static_cast<size_t>(tap)] * static_cast<double>(weight[channel * taps_of_width + tap]);
      }
      values[static_cast<size_t>(channel)] = static_cast<float>(sum);
    }
  };
  for (int32_t bin = 0; bin < spectrum::num_bins(positions); ++bin) {
    const bool is_real = spectrum::is_real_bin(bin, positions);
    const int64_t rows = is_real ? config.feature_size() : 2 * sizes.features;
    const int64_t stride = is_real ? sizes.channels : 2 * sizes.channels;
    bins.push_back(pack_matrix(
        buffers_, form.convolutions, rows, stride, false,
        [&](int64_t row, std::span<float> values) {
          // Y = X conj(W):  Re Y = Re X Re W + Im X Im W,  Im Y = Im X Re W - Re X Im W.
          const bool imaginary_row = row >= sizes.features;
          const int64_t feature = imaginary_row ? row - sizes.features : row;
          if (feature >= config.feature_size()) return;
          spectrum_row(feature, bin, imaginary_row, imaginary_row ? -1.0f : 1.0f, values);
          if (!is_real) {
            spectrum_row(feature, bin, !imaginary_row, 1.0f, values.subspan(static_cast<size_t>(sizes.channels)));
          }
        },
        pool));
  }
}

void CudaWeights::project_vocabulary(const ClassifierConfig& config, const CudaForm& form) {
  const CudaSizes sizes = cuda_sizes(config, form);
  table = buffers_.take<std::byte>(config.vocab_size * sizes.table_row_bytes);
  implicit_gemm::Task task;
  task.x = embedding.view;
  task.weight = taps.view;
  task.channels = static_cast<int32_t>(sizes.channels);
  task.out_features = static_cast<int32_t>(config.num_taps() * sizes.filters);
  task.scale = taps.scale;
  task.out = {table, stored_kind(form.convolutions), config.num_taps() * sizes.filters, 0};
  implicit_gemm::ImplicitGemm({&task, 1}, config.vocab_size).launch(config.vocab_size, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  taps = {};  // all there was to multiply has been multiplied: their memory goes
  embedding = {};
}

void CudaWeights::pack_experts(const Model& model, const CudaForm& form, ThreadPool& pool) {
  const ClassifierConfig& config = model.config;
  const ModelWeights& weights = model.weights;
  const CudaSizes sizes = cuda_sizes(config, form);
  const int64_t num_features = config.feature_size();
  router_weight = upload(buffers_, weights.router.weight.span());
  router_bias = upload(buffers_, weights.router.bias.span());
  std::vector<cpu::FoldedLayer> folded;
  if (form.folded_head) {
    const cpu::LinearLayer outer{weights.head[0].weight.data(), weights.head[0].bias.data(), config.head_sizes[0],
                                 config.expert_size};
    for (const LinearWeights& expert : weights.experts) {
      folded.push_back(
          cpu::fold_layers(outer, {expert.weight.data(), expert.bias.data(), config.expert_size, num_features}, pool));
    }
    mixed_bias = upload(buffers_, weights.head[0].bias.span());
  }
  const auto weight_of = [&](int64_t expert) -> const Buffer<float>& {
    const auto e = static_cast<size_t>(expert);
    return form.folded_head ? folded[e].weight : weights.experts[e].weight;
  };
  // The grouped GEMM of skipped experts knows no scale.
  experts = pack_matrix(
      buffers_, form.experts, config.num_experts * sizes.expert_stride, sizes.features, form.skips_experts(),
      [&](int64_t row, std::span<float> values) {
        const int64_t output = row % sizes.expert_stride;
        if (output < sizes.expert_size) copy_row(weight_of(row / sizes.expert_stride), output, num_features, values);
      },
      pool);
  std::vector<float> bias(static_cast<size_t>(config.num_experts * sizes.expert_stride), 0.0f);
  for (int64_t e = 0; e < config.num_experts; ++e) {
    const auto i = static_cast<size_t>(e);
    const Buffer<float>& source = form.folded_head ? folded[i].bias : weights.experts[i].bias;
    std::copy(source.begin(), source.end(), bias.begin() + e * sizes.expert_stride);
  }
  expert_bias = upload<float>(buffers_, bias);
  if (form.skips_experts()) {
    std::vector<uint16_t> rounded(bias.size());
    round_row(form.experts, 1.0f, bias, rounded.data(), nullptr);
    expert_bias_16 = upload<uint16_t>(buffers_, rounded);
  }
}

void CudaWeights::pack_head(const Model& model, const CudaForm& form, ThreadPool& pool) {
  const ClassifierConfig& config = model.config;
  const CudaSizes sizes = cuda_sizes(config, form);
  for (size_t i = sizes.first_head; i < config.head_sizes.size(); ++i) {
    const LinearWeights& layer = model.weights.head[i];
    const int64_t in_features = config.head_input_size(i);
    head.push_back(pack_matrix(
        buffers_, form.head, config.head_sizes[i], cta::padded_stride(in_features), false,
        [&](int64_t row, std::span<float> values) { copy_row(layer.weight, row, in_features, values); }, pool));
    head_bias.push_back(upload(buffers_, layer.bias.span()));
  }
  output_weight = upload(buffers_, model.weights.output.weight.span());
  output_bias = upload(buffers_, model.weights.output.bias.span());
}

}  // namespace tessera::classifier
