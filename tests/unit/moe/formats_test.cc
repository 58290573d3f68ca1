#include "moe/formats.h"

#include <gtest/gtest.h>

#include <set>

#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

TEST(Formats, NamesAndNumbersAreRead) {
  std::set<std::string_view> names;
  for (const FormatRow& row : format_rows()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(weight_format_name(row.format), row.name);
    EXPECT_EQ(parse_weight_format(row.name, "format"), row.format);
    EXPECT_EQ(weight_format(static_cast<int64_t>(row.format)), row.format);
    EXPECT_EQ(&format_row(row.format), &row);
    EXPECT_GT(row.product_roundoff, 0.0);
    EXPECT_LT(row.product_roundoff, 0x1p-10);
    EXPECT_EQ(row.scale_block_rows == 0, row.scale_block_columns == 0);
  }
}

TEST(Formats, ErrorsListTheNames) {
  const auto message = [](const auto& call) {
    try {
      call();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message([] { parse_weight_format("f7", "weight_format"); }),
            "weight_format: got 'f7', expected one of dense, fp8-block, fp8-channel");
  EXPECT_EQ(message([] { weight_format(256); }),
            "weight_format: got 256, expected the number of one of dense, fp8-block, fp8-channel");
  EXPECT_EQ(message([] { weight_format(-1); }),
            "weight_format: got -1, expected the number of one of dense, fp8-block, fp8-channel");
}

TEST(Formats, DenseIsTheLayersType) {
  const FormatRow& dense = format_row(WeightFormat::dense);
  EXPECT_EQ(weight_bytes(dense, DType::bf16, 3, 5), 30u);
  EXPECT_EQ(weight_bytes(dense, DType::f32, 3, 5), 60u);
  EXPECT_EQ(scale_bytes(dense, 300, 500), 0u);
  const uint16_t bf16[] = {f32_to_bf16(0.5f), f32_to_bf16(-3.0f)};
  const uint16_t f16[] = {f32_to_f16(0.25f), f32_to_f16(1e-7f)};
  const float f32[] = {1.0f, 0.1f};
  EXPECT_EQ(dense.decode(bf16, DType::bf16, 1), -3.0);
  EXPECT_EQ(dense.decode(f16, DType::f16, 0), 0.25);
  EXPECT_EQ(dense.decode(f16, DType::f16, 1), double{f16_to_f32(f16[1])});
  EXPECT_EQ(dense.decode(f32, DType::f32, 1), double{0.1f});
}

TEST(Formats, Fp8BlockIsE4m3WithAScaleEach128Square) {
  const FormatRow& fp8 = format_row(WeightFormat::fp8_block);
  EXPECT_EQ(fp8.name, "fp8-block");
  EXPECT_EQ(weight_bytes(fp8, DType::bf16, 3, 5), 15u);
  EXPECT_EQ(weight_bytes(fp8, DType::f32, 3, 5), 15u);
  EXPECT_EQ(scale_bytes(fp8, 129, 256), 2u * 2u * 4u);
  EXPECT_EQ(scale_bytes(fp8, 16, 16), 4u);
  EXPECT_EQ(fp8.row_group, 128);
  EXPECT_EQ(width_multiple(fp8), 16);
  EXPECT_EQ(width_multiple(format_row(WeightFormat::dense)), 8);
  const uint8_t codes[] = {0x38, 0xFE, 0x01};
  EXPECT_EQ(fp8.decode(codes, DType::bf16, 0), 1.0);
  EXPECT_EQ(fp8.decode(codes, DType::bf16, 1), -448.0);
  EXPECT_EQ(fp8.decode(codes, DType::bf16, 2), 0x1p-9);
}

TEST(Formats, Fp8ChannelIsE4m3WithAScaleEachRow) {
  const FormatRow& fp8 = format_row(WeightFormat::fp8_channel);
  EXPECT_EQ(fp8.name, "fp8-channel");
  EXPECT_EQ(scale_bytes(fp8, 129, 256), 129u * 4u);
  EXPECT_EQ(num_token_groups(fp8, 7168), 1);
  EXPECT_EQ(num_token_groups(format_row(WeightFormat::fp8_block), 7168), 56);
  EXPECT_EQ(num_token_groups(format_row(WeightFormat::dense), 7168), 0);
  EXPECT_EQ(fp8.row_group, 128);
  EXPECT_TRUE(fp8.scales_rows() && fp8.has_scales() && fp8.quantizes_rows());
}

// 4-bit elements and a scale a block, by numbers: what a row of the table says is all that sizes depend on.
TEST(Formats, SizesFollowTheRow) {
  const FormatRow row{WeightFormat::dense, "toy", 4, 128, 32, DType::f32, nullptr, 0x1p-12, 0};
  EXPECT_EQ(weight_bytes(row, DType::bf16, 3, 5), 9u);
  EXPECT_EQ(scale_bytes(row, 129, 33), 2u * 2u * 4u);
  EXPECT_EQ(scale_bytes(row, 128, 32), 4u);
  EXPECT_EQ(width_multiple(row), 32);
}

}  // namespace
}  // namespace tessera::moe
