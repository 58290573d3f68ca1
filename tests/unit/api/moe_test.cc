// The C interface of the MoE layer and the router: its errors, word for word, and the router against the C++ one, bit
// for bit. The layer itself: moe_battery_test.cc.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <thread>

#include "tessera/moe/router.h"
#include "unit/api/c_layer.h"

namespace tessera::testing {
namespace {

TEST(CApi, MemoryThatIsWrittenOverlapsNothingElse) {
  const LayerData data({.tokens = 9, .bias = true, .shared_intermediate = 24, .shared_weight = true});
  CLayer layer(data);
  ASSERT_EQ(layer.create(), TESSERA_OK) << tessera_last_error();
  size_t bytes = 0;
  ASSERT_EQ(tessera_moe_workspace_bytes(layer.layer, 9, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(size_t{9} * 64 * 2);
  const auto run = [&](const void* result, const void* scratch) {
    layer.inputs.out = const_cast<void*>(result);
    return tessera_moe_run(layer.layer, &layer.inputs, const_cast<void*>(scratch), bytes, nullptr);
  };
  ASSERT_EQ(run(out.data(), workspace.data()), TESSERA_OK) << tessera_last_error();
  const std::pair<const char*, const void*> others[] = {{"x", layer.inputs.x},
                                                        {"topk_ids", layer.inputs.topk_ids},
                                                        {"topk_weights", layer.inputs.topk_weights},
                                                        {"shared_weight", layer.inputs.shared_weight},
                                                        {"the gate_up weight", layer.weights.gate_up},
                                                        {"the down weight", layer.weights.down},
                                                        {"the gate_up bias", layer.weights.gate_up_bias},
                                                        {"the down bias", layer.weights.down_bias},
                                                        {"the shared gate_up weight", layer.weights.shared_gate_up},
                                                        {"the shared down weight", layer.weights.shared_down}};
  for (const auto& [name, address] : others) {
    // What lies behind it in memory may be another of them: which one is named is looked at where the test has cut the
    // memory itself (tests/python/memory_test.py).
    const auto aligned = reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(address) / 16 * 16);
    EXPECT_EQ(run(aligned, workspace.data()), TESSERA_INVALID_ARGUMENT) << name;
    EXPECT_STREQ(tessera_last_error_where(), "out") << name;
    EXPECT_EQ(run(out.data(), aligned), TESSERA_INVALID_ARGUMENT) << name;
    EXPECT_STREQ(tessera_last_error_where(), "workspace") << name;
  }
  EXPECT_EQ(run(workspace.data() + (bytes - 1) / 16 * 16, workspace.data()), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "workspace: got memory that overlaps out, expected memory of its own");
  layer.config.num_mapped_experts = 0;
  const int32_t map[] = {0};
  layer.weights.expert_map = map;
  tessera_moe* mapped = nullptr;
  EXPECT_EQ(tessera_moe_create(&layer.config, &layer.weights, &mapped), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "num_mapped_experts");
}

TEST(CApi, ErrorsNameTheArgument) {
  const LayerData data({.hidden = 64});
  CLayer c_layer(data);
  c_layer.config.hidden_size = 63;
  EXPECT_EQ(c_layer.create(), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "hidden_size: got 63, expected a positive multiple of 8");
  EXPECT_STREQ(tessera_last_error_where(), "hidden_size");
  EXPECT_EQ(c_layer.layer, nullptr);
  c_layer.config.hidden_size = 64;
  c_layer.config.activation = 99;
  EXPECT_EQ(c_layer.create(), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "activation: got 99, expected 0..6");
  c_layer.config.activation = TESSERA_SILU;
  EXPECT_EQ(tessera_moe_create(nullptr, &c_layer.weights, &c_layer.layer), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "config: got a null pointer, expected an address");
  EXPECT_EQ(tessera_moe_create(&c_layer.config, &c_layer.weights, nullptr), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "layer");
  size_t bytes = 0;
  EXPECT_EQ(tessera_moe_workspace_bytes(nullptr, 1, &bytes), TESSERA_INVALID_ARGUMENT);
  ASSERT_EQ(c_layer.create(), TESSERA_OK);
  EXPECT_EQ(tessera_moe_workspace_bytes(c_layer.layer, -1, &bytes), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "max_tokens");
  ASSERT_EQ(tessera_moe_workspace_bytes(c_layer.layer, 65, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(size_t{65} * 64 * 2);
  c_layer.inputs.out = out.data();
  EXPECT_EQ(tessera_moe_run(c_layer.layer, &c_layer.inputs, workspace.data(), bytes - 1, nullptr),
            TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "workspace");
  c_layer.inputs.topk_weights_dtype = 3;
  EXPECT_EQ(tessera_moe_run(c_layer.layer, &c_layer.inputs, workspace.data(), bytes, nullptr),
            TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "topk_weights_dtype: got 3, expected 0..2");
  int stream = 0;
  c_layer.inputs.topk_weights_dtype = TESSERA_F32;
  EXPECT_EQ(tessera_moe_run(c_layer.layer, &c_layer.inputs, workspace.data(), bytes, &stream),
            TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "stream");
  tessera_moe_destroy(nullptr);
}

// A structure as tessera_moe_config_init leaves it goes with every activation.
TEST(CApi, OptionsWithoutEffectAreRefused) {
  const LayerData data({.hidden = 64});
  const auto message = [&](const auto& change) {
    CLayer c_layer(data);
    c_layer.config.num_threads = 0;
    change(c_layer.config);
    return c_layer.create() == TESSERA_OK ? std::string() : std::string(tessera_last_error());
  };
  for (int32_t kind = TESSERA_IDENTITY; kind < TESSERA_CLAMPED_SWIGLU; ++kind) {
    const auto with = [&](float tessera_moe_config::*number, float value) {
      return message([&](tessera_moe_config& c) {
        c.activation = kind;
        c.gated = kind == TESSERA_RELU_SQUARED ? 0 : 1;
        if (number != nullptr) c.*number = value;
      });
    };
    EXPECT_EQ(with(nullptr, 0.0f), "") << kind;
    EXPECT_EQ(with(&tessera_moe_config::alpha, 0.0f),
              "activation alpha: got 0, expected 1: only clamped_swiglu has one");
    EXPECT_EQ(with(&tessera_moe_config::beta, 1.0f), "activation beta: got 1, expected 0: only clamped_swiglu has one");
    EXPECT_EQ(with(&tessera_moe_config::limit, 7.0f),
              "activation limit: got 7, expected 0: only clamped_swiglu has one");
  }
  EXPECT_EQ(message([](tessera_moe_config& c) { c.device = 0, c.num_threads = 2; }),
            "num_threads: got 2, expected 0 with device cuda: only the CPU computes with threads");
}

TEST(CApi, TheLastErrorIsTheThreadsOwn) {
  EXPECT_EQ(tessera_moe_create(nullptr, nullptr, nullptr), TESSERA_INVALID_ARGUMENT);
  std::thread([] {
    EXPECT_STREQ(tessera_last_error(), "");
    EXPECT_STREQ(tessera_last_error_where(), "");
  }).join();
  EXPECT_STREQ(tessera_last_error_where(), "layer");
}

// A program built with a header that ended before num_threads passes a shorter structure: what it knows is read.
TEST(CApi, OlderStructuresAreRead) {
  const LayerData data({.hidden = 64});
  CLayer c_layer(data);
  c_layer.config.struct_bytes = offsetof(tessera_moe_config, num_threads);
  c_layer.config.num_threads = -5;  // beyond what it says it has
  EXPECT_EQ(c_layer.create(), TESSERA_OK) << tessera_last_error();
  for (const size_t bytes : {size_t{0}, sizeof(size_t) - 1, sizeof(tessera_moe_config) + 1}) {
    CLayer other(data);
    other.config.struct_bytes = bytes;
    EXPECT_EQ(other.create(), TESSERA_INVALID_ARGUMENT) << bytes;
    EXPECT_STREQ(tessera_last_error_where(), "config struct_bytes");
  }
}

/// What an init function writes into memory of `bytes` bytes, and of 64 bytes behind, which are not its.
template <class Struct>
std::vector<unsigned char> initialised(void (*init)(Struct*, size_t), size_t bytes) {
  alignas(Struct) std::array<unsigned char, sizeof(Struct) + 128> memory;
  memory.fill(0xA5);
  init(reinterpret_cast<Struct*>(memory.data()), bytes);
  return {memory.begin(), memory.begin() + static_cast<ptrdiff_t>(bytes) + 64};
}

// A program built with a header whose structure ended sooner has no memory behind that end.
template <class Struct>
void expect_init_keeps_to_its_bytes(void (*init)(Struct*, size_t), void (*inline_init)(Struct*)) {
  Struct whole;
  inline_init(&whole);
  EXPECT_EQ(whole.struct_bytes, sizeof(Struct));
  unsigned char defaults[sizeof(Struct) + 64] = {};
  std::memcpy(defaults, &whole, sizeof(Struct));
  for (size_t bytes = 0; bytes <= sizeof(Struct) + 64; bytes += 4) {
    const std::vector<unsigned char> got = initialised(init, bytes);
    std::vector<unsigned char> expected(bytes + 64, 0xA5);
    if (bytes >= sizeof(size_t)) {
      std::memcpy(expected.data(), defaults, bytes);
      std::memcpy(expected.data(), &bytes, sizeof(bytes));
    }
    EXPECT_EQ(got, expected) << bytes;
  }
  init(nullptr, sizeof(Struct));
}

TEST(CApi, InitWritesNoMoreThanTheCallersStructure) {
  expect_init_keeps_to_its_bytes(tessera_moe_config_init_sized, tessera_moe_config_init);
  expect_init_keeps_to_its_bytes(tessera_moe_weights_init_sized, tessera_moe_weights_init);
  expect_init_keeps_to_its_bytes(tessera_moe_inputs_init_sized, tessera_moe_inputs_init);
  expect_init_keeps_to_its_bytes(tessera_router_config_init_sized, tessera_router_config_init);
  expect_init_keeps_to_its_bytes(tessera_classifier_options_init_sized, tessera_classifier_options_init);
  expect_init_keeps_to_its_bytes(tessera_classifier_info_init_sized, tessera_classifier_info_init);
  expect_init_keeps_to_its_bytes(tessera_classifier_outputs_init_sized, tessera_classifier_outputs_init);
}

TEST(CApi, WeightFormatsAndScales) {
  const LayerData data({.hidden = 64});
  CLayer older(data);
  older.config.struct_bytes = offsetof(tessera_moe_config, weight_format);
  older.config.weight_format = 77;  // beyond what it says it has
  older.weights.struct_bytes = offsetof(tessera_moe_weights, gate_up_scale);
  older.weights.gate_up_scale = &older;
  EXPECT_EQ(older.create(), TESSERA_OK) << tessera_last_error();
  for (const int32_t number : {-1, 3, 256}) {
    CLayer other(data);
    other.config.weight_format = number;
    EXPECT_EQ(other.create(), TESSERA_INVALID_ARGUMENT) << number;
    EXPECT_STREQ(tessera_last_error_where(), "weight_format");
  }
  alignas(16) const float scale[4] = {};
  const std::pair<const void * tessera_moe_weights::*, const char*> scales[] = {
      {&tessera_moe_weights::gate_up_scale, "gate_up scale"},
      {&tessera_moe_weights::down_scale, "down scale"},
      {&tessera_moe_weights::shared_gate_up_scale, "shared gate_up scale"},
      {&tessera_moe_weights::shared_down_scale, "shared down scale"}};
  for (const auto& [member, where] : scales) {
    CLayer other(data);
    other.weights.*member = scale;
    EXPECT_EQ(other.create(), TESSERA_INVALID_ARGUMENT) << where;
    EXPECT_STREQ(tessera_last_error_where(), where);
  }
}

TEST(CApi, TokensThatAreQuantised) {
  const LayerData data(find_case("fp8_map_shared_bf16"));
  const moe::LayerConfig config = data.config();
  CLayer c(data);
  ASSERT_EQ(c.create(), TESSERA_OK) << tessera_last_error();
  size_t bytes = 0;
  ASSERT_EQ(tessera_moe_workspace_bytes(c.layer, c.inputs.num_tokens, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(data.out_bytes()), right(data.out_bytes());
  const auto run = [&](GuardedBytes& to) {
    c.inputs.out = to.data();
    return tessera_moe_run(c.layer, &c.inputs, workspace.data(), bytes, nullptr);
  };
  ASSERT_EQ(run(right), TESSERA_OK);
  const auto size = static_cast<size_t>(c.inputs.num_tokens) * static_cast<size_t>(config.hidden_size);
  Buffer<uint8_t> codes(size);
  std::vector<float> scales(size);
  ASSERT_EQ(tessera_quantize_rows(c.inputs.x, TESSERA_BF16, c.inputs.num_tokens, config.hidden_size, codes.data(),
                                  scales.data()),
            TESSERA_OK);
  c.inputs.x = codes.data();
  c.inputs.x_scale = scales.data();
  ASSERT_EQ(run(out), TESSERA_OK) << tessera_last_error();
  EXPECT_EQ(std::memcmp(out.data(), right.data(), out.size()), 0);
  // An older program's structure ends before the scales: its x is of the layer's type.
  c.inputs.x = data.inputs().x;
  c.inputs.struct_bytes = offsetof(tessera_moe_inputs, x_scale);
  ASSERT_EQ(run(out), TESSERA_OK);
  EXPECT_EQ(std::memcmp(out.data(), right.data(), out.size()), 0);
}

TEST(CApi, QuantizesRowsAndBlocks) {
  const float values[] = {3.5f, -1.0f, 0.0f, 448.0f};
  uint8_t codes[4];
  float scales[2];
  ASSERT_EQ(tessera_quantize_rows(values, TESSERA_F32, 2, 2, codes, scales), TESSERA_OK) << tessera_last_error();
  EXPECT_EQ(scales[0], 0x1p-7f);
  EXPECT_EQ(scales[1], 1.0f);
  EXPECT_EQ(codes[0], 0x7E);
  EXPECT_EQ(codes[1], 0x80 | 14 << 3);
  EXPECT_EQ(codes[2], 0x00);
  EXPECT_EQ(codes[3], 0x7E);
  // Rows up, gate: up's scale is the second all the same.
  ASSERT_EQ(tessera_quantize_blocks(values, TESSERA_F32, 1, 2, 2, 1, TESSERA_UP_FIRST, codes, scales), TESSERA_OK);
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 0x1p-7f);
  ASSERT_EQ(tessera_quantize_blocks(values, TESSERA_F32, 1, 2, 2, 0, TESSERA_GATE_FIRST, codes, scales), TESSERA_OK);
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(codes[0], 0x46);  // 3.5
  EXPECT_EQ(tessera_quantize_rows(values, 3, 2, 2, codes, scales), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "dtype");
  EXPECT_EQ(tessera_quantize_rows(nullptr, TESSERA_F32, 2, 2, codes, scales), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "values");
  EXPECT_EQ(tessera_quantize_blocks(values, TESSERA_F32, 1, 2, 2, 1, 3, codes, scales), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "gate_up_order");
}

TEST(CApi, ChannelScales) {
  const LayerData data(find_case("channel_shared_22_bf16"));
  CLayer c(data);
  ASSERT_EQ(c.create(), TESSERA_OK) << tessera_last_error();
  size_t bytes = 0;
  ASSERT_EQ(tessera_moe_workspace_bytes(c.layer, c.inputs.num_tokens, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(data.out_bytes());
  c.inputs.out = out.data();
  ASSERT_EQ(tessera_moe_run(c.layer, &c.inputs, workspace.data(), bytes, nullptr), TESSERA_OK) << tessera_last_error();
  const std::vector<std::byte> expected = data.run();
  EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size()), 0);
  EXPECT_EQ(tessera_moe_check_scales(&c.config, &c.weights), TESSERA_OK) << tessera_last_error();
  CLayer other(data);
  other.config.num_down_input_scales = 2;
  EXPECT_EQ(other.create(), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "num_down_input_scales");
  const float stored[] = {2.0f, 3.0f};
  float scales[4];
  const auto convert = [&](int32_t grid, int32_t order) {
    return tessera_convert_channel_scales(stored, TESSERA_SCALE_F32, grid, 1, 4, 1, order, scales);
  };
  ASSERT_EQ(convert(TESSERA_SCALES_OF_HALVES, TESSERA_INTERLEAVED), TESSERA_OK) << tessera_last_error();
  EXPECT_EQ((std::vector<float>{scales, scales + 4}), (std::vector<float>{2, 3, 2, 3}));
  EXPECT_EQ(convert(3, TESSERA_GATE_FIRST), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "channel_grid");
  const float row[] = {3.5f, -1.0f};
  uint8_t codes[2];
  ASSERT_EQ(tessera_quantize_whole_rows(row, TESSERA_F32, 1, 2, codes, scales), TESSERA_OK);
  EXPECT_EQ(scales[0], 0x1p-7f);
  EXPECT_EQ(codes[0], 0x7E);
}

TEST(CApi, ChecksScales) {
  const LayerData data(find_case("fp8_map_shared_bf16"));
  CLayer c(data);
  EXPECT_EQ(tessera_moe_check_scales(&c.config, &c.weights), TESSERA_OK) << tessera_last_error();
  std::vector<float> scales(data.down_scale().size() / sizeof(float), 1.0f);
  scales[3] = -1.0f;
  c.weights.down_scale = scales.data();
  EXPECT_EQ(tessera_moe_check_scales(&c.config, &c.weights), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "down scale of expert 0, block [1, 1]");
  c.weights.down_scale = nullptr;
  EXPECT_EQ(tessera_moe_check_scales(&c.config, &c.weights), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "down scale");
}

TEST(CApi, ConvertsScales) {
  const uint16_t stored[] = {0x3F80, 0x4000, 0x4040};  // 1, 2, 3 as bf16: 384 rows, the second 128 of gate and up
  float scales[4] = {};
  const auto convert = [&](int32_t type, int32_t grid, int32_t up_offset) {
    return tessera_convert_scales(stored, type, grid, 1, 384, 128, 1, up_offset, scales);
  };
  ASSERT_EQ(convert(TESSERA_SCALE_BF16, TESSERA_SCALES_CONCATENATED, 64), TESSERA_OK) << tessera_last_error();
  EXPECT_EQ((std::vector<float>{scales, scales + 4}), (std::vector<float>{1, 2, 2, 3}));
  EXPECT_EQ(convert(TESSERA_SCALE_BF16, TESSERA_SCALES_CONCATENATED, 0), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "scale of expert 0, up, block [0, 0]");
  EXPECT_EQ(convert(3, TESSERA_SCALES_CONCATENATED, 64), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "scale_type");
  EXPECT_EQ(convert(TESSERA_SCALE_BF16, 3, 64), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "grid");
  const uint8_t bytes[] = {127, 128, 126, 255};
  ASSERT_EQ(tessera_convert_scales(bytes, TESSERA_SCALE_E8M0, TESSERA_SCALES_INTERLEAVED, 1, 256, 128, 1, 0, scales),
            TESSERA_OK);
  EXPECT_EQ(scales[1], 2.0f);
  EXPECT_EQ(tessera_convert_scales(bytes, TESSERA_SCALE_E8M0, TESSERA_SCALES_PER_PROJECTION, 1, 512, 128, 0, 0, scales),
            TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(),
               "scale of expert 0, block [3, 0]: got nan, expected a finite number that is not negative");
}

// The numbers are those that the layer itself refuses by: each is taken, one step beyond is not.
TEST(CApi, LimitsAreWhatALayerTakes) {
  const tessera_moe_limit_values& limits = *tessera_moe_limits();
  EXPECT_EQ(limits.struct_bytes, sizeof(limits));
  const LayerData data({.hidden = 64});
  const auto refused = [&](const auto& change) {
    CLayer c_layer(data);
    change(c_layer);
    return c_layer.create() == TESSERA_OK ? std::string() : std::string(tessera_last_error_where());
  };
  EXPECT_EQ(refused([&](CLayer& c) { c.config.num_experts = limits.max_experts; }), "");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.num_experts = limits.max_experts + 1; }), "num_experts");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.top_k = limits.max_top_k; }), "");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.top_k = limits.max_top_k + 1; }), "top_k");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.hidden_size = 3 * limits.width_multiple; }), "");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.hidden_size = 3 * limits.width_multiple + 1; }), "hidden_size");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.intermediate_size = limits.width_multiple / 2; }), "intermediate_size");
  const auto moved_down = [](CLayer& c, int32_t bytes) {
    c.weights.down = static_cast<const std::byte*>(c.weights.down) + bytes;
  };
  EXPECT_EQ(refused([&](CLayer& c) { moved_down(c, limits.alignment); }), "");
  EXPECT_EQ(refused([&](CLayer& c) { moved_down(c, limits.alignment / 2); }), "down weight");
  EXPECT_EQ(refused([&](CLayer& c) { c.config.num_threads = limits.max_threads + 1; }), "num_threads");
  EXPECT_NE(std::string(tessera_last_error()).find(std::to_string(limits.max_threads)), std::string::npos);
}

// The flag is that of the thread, and only long calls look at it.
TEST(CApi, LongCallsEndWhenTheirThreadsFlagSaysSo) {
  const LayerData data({.tokens = 9});
  CLayer c_layer(data);
  ASSERT_EQ(c_layer.create(), TESSERA_OK) << tessera_last_error();
  size_t bytes = 0;
  ASSERT_EQ(tessera_moe_workspace_bytes(c_layer.layer, 9, &bytes), TESSERA_OK);
  GuardedBytes workspace(bytes), out(size_t{9} * 64 * 2);
  c_layer.inputs.out = out.data();
  const auto run = [&] { return tessera_moe_run(c_layer.layer, &c_layer.inputs, workspace.data(), bytes, nullptr); };
  int32_t flag = 0;
  tessera_set_stop(&flag);
  EXPECT_EQ(run(), TESSERA_OK) << tessera_last_error();
  flag = 1;
  EXPECT_EQ(run(), TESSERA_STOPPED);
  EXPECT_STREQ(tessera_last_error(), "stopped by its caller");
  tessera_classifier* classifier = nullptr;
  EXPECT_EQ(tessera_classifier_load(TESSERA_SOURCE_DIR "/models/movie-reviews", nullptr, &classifier), TESSERA_STOPPED);
  EXPECT_EQ(classifier, nullptr);
  EXPECT_EQ(tessera_device_check(TESSERA_CPU), TESSERA_OK);
  std::thread([&] { EXPECT_EQ(run(), TESSERA_OK); }).join();
  tessera_set_stop(nullptr);
  EXPECT_EQ(run(), TESSERA_OK) << tessera_last_error();
}

TEST(CApi, DevicesThatAreNotThere) {
  EXPECT_EQ(tessera_device_check(TESSERA_CPU), TESSERA_OK);
  const int32_t beyond = tessera_num_devices() + 5;
  const tessera_status expected = tessera_num_devices() == 0 ? TESSERA_UNAVAILABLE : TESSERA_INVALID_ARGUMENT;
  EXPECT_EQ(tessera_device_check(beyond), expected);
  EXPECT_STREQ(tessera_last_error_where(), "device");
  const LayerData data({.hidden = 64});
  CLayer c_layer(data);
  c_layer.config.device = beyond;
  c_layer.config.num_threads = 0;
  EXPECT_EQ(c_layer.create(), expected);
  void* memory = &c_layer;
  EXPECT_EQ(tessera_allocate(beyond, 16, &memory), expected);
  EXPECT_EQ(memory, nullptr);
  char name[64];
  EXPECT_EQ(tessera_device_name(beyond, name, sizeof(name)), expected);
  EXPECT_EQ(tessera_device_name(TESSERA_CPU, name, sizeof(name)), TESSERA_OK);
  EXPECT_EQ(std::string(name).rfind("CPU, ", 0), 0u) << name;
  EXPECT_EQ(tessera_device_name(TESSERA_CPU, name, 4), TESSERA_OK);
  EXPECT_STREQ(name, "CPU");
  EXPECT_EQ(tessera_device_name(TESSERA_CPU, name, 0), TESSERA_INVALID_ARGUMENT);
}

TEST(CApi, HostMemory) {
  void* memory = nullptr;
  ASSERT_EQ(tessera_allocate(TESSERA_CPU, 1000, &memory), TESSERA_OK);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
  std::memset(memory, 1, 1000);
  tessera_free(TESSERA_CPU, memory);
  EXPECT_EQ(tessera_allocate(TESSERA_CPU, 0, &memory), TESSERA_OK);
  EXPECT_EQ(memory, nullptr);
  tessera_free(TESSERA_CPU, nullptr);
  EXPECT_EQ(tessera_allocate(TESSERA_CPU, SIZE_MAX, &memory), TESSERA_OUT_OF_MEMORY);
  EXPECT_STREQ(tessera_version(), "0.1.0");
}

TEST(CApi, PreparedWeightsAreTheTranspose) {
  const LayerData data({.hidden = 64, .intermediate = 72, .experts = 2});
  CLayer c_layer(data);
  GuardedBytes columns(size_t{2} * 64 * 72 * 2), rows(columns.size());
  // [E, H, I] to [E, I, H] by the same function, then back.
  ASSERT_EQ(
      tessera_moe_prepare_weights(&c_layer.config, nullptr, data.weights().down, nullptr, columns.data(), nullptr),
      TESSERA_OK)
      << tessera_last_error();
  std::swap(c_layer.config.hidden_size, c_layer.config.intermediate_size);
  ASSERT_EQ(tessera_moe_prepare_weights(&c_layer.config, nullptr, columns.data(), nullptr, rows.data(), nullptr),
            TESSERA_OK);
  EXPECT_EQ(std::memcmp(rows.data(), data.weights().down, rows.size()), 0);
  EXPECT_NE(std::memcmp(columns.data(), data.weights().down, rows.size()), 0);
}

TEST(CApi, RouteEqualsTheCxxRouter) {
  const int32_t tokens = 33, experts = 12, k = 3;
  Buffer<float> logits(size_t{33} * 12), bias(12);
  for (size_t i = 0; i < logits.size(); ++i) logits.data()[i] = static_cast<float>((i * 37) % 101) / 17.0f;
  for (size_t i = 0; i < 12; ++i) bias.data()[i] = static_cast<float>(i % 5) / 7.0f;
  for (int32_t kind = 0; kind <= TESSERA_SIGMOID_RENORMALIZE; ++kind) {
    const bool grouped = kind == TESSERA_SIGMOID_GROUPED;
    RouterConfig config{.kind = static_cast<RouterKind>(kind), .num_experts = experts, .top_k = k, .scale = 2.5f};
    tessera_router_config c_config;
    tessera_router_config_init(&c_config);
    c_config.kind = kind;
    c_config.num_experts = experts;
    c_config.top_k = k;
    c_config.scale = 2.5f;
    if (grouped) config.num_groups = c_config.num_groups = 4;
    if (grouped) config.topk_groups = c_config.topk_groups = 2;
    std::vector<int32_t> ids(99), c_ids(99);
    std::vector<float> weights(99), c_weights(99);
    const float* used_bias = grouped ? bias.data() : nullptr;
    moe::route(config, {logits.data(), used_bias, ids.data(), weights.data(), nullptr, tokens});
    ASSERT_EQ(
        tessera_route(&c_config, tokens, logits.data(), used_bias, c_ids.data(), c_weights.data(), nullptr, nullptr),
        TESSERA_OK)
        << tessera_last_error();
    EXPECT_EQ(c_ids, ids) << kind;
    EXPECT_EQ(c_weights, weights) << kind;
  }
}

}  // namespace
}  // namespace tessera::testing
