#include "classifier/school_format.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

namespace fs = std::filesystem;

class SchoolFormat : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / str_cat("tessera_school_", getpid());
    fs::create_directories(folder_);
    // Value i of the whole model is i, so that a value says where it stood.
    model_.config = preset_config("small");
    float value = 0;
    for (const TensorSpec& spec : tensor_specs(model_.config, model_.weights)) {
      size_t size = 1;
      for (const int64_t dim : spec.shape) size *= static_cast<size_t>(dim);
      *spec.values = Buffer<float>(size);
      for (float& x : *spec.values) x = value++;
    }
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::vector<float> floats(const fs::path& path) const {
    std::vector<float> values(fs::file_size(path) / sizeof(float));
    std::ifstream(path, std::ios::binary)
        .read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
    return values;
  }

  fs::path folder_;
  Model model_;
};

TEST_F(SchoolFormat, full_size_is_what_the_school_says) {
  EXPECT_EQ(school_params_bytes(preset_config("apws25")), 547'481'624u);
}

TEST_F(SchoolFormat, order_is_convolutions_experts_router_head_output) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : school_specs(model_.config, model_.weights)) names.push_back(spec.name);
  const std::vector<std::string> expected = {
      "conv.0.weight",    "conv.0.bias",    "conv.1.weight",    "conv.1.bias",    "conv.2.weight",    "conv.2.bias",
      "experts.0.weight", "experts.0.bias", "experts.1.weight", "experts.1.bias", "experts.2.weight", "experts.2.bias",
      "router.weight",    "router.bias",    "head.0.weight",    "head.0.bias",    "output.weight",    "output.bias"};
  EXPECT_EQ(names, expected);
  write_school_model(folder_, model_);
  std::vector<float> expected_values;
  for (const TensorSpec& spec : school_specs(model_.config, model_.weights)) {
    expected_values.insert(expected_values.end(), spec.values->begin(), spec.values->end());
  }
  EXPECT_EQ(floats(folder_ / "params.bin"), expected_values);
  EXPECT_FALSE(std::is_sorted(expected_values.begin(), expected_values.end())) << "the checkpoint has another order";
  EXPECT_FALSE(fs::exists(folder_ / "vocab.txt"));
}

TEST_F(SchoolFormat, reads_what_it_wrote) {
  write_school_model(folder_, model_);
  Model back = read_school_model(
      model_.config, {.params = folder_ / "params.bin", .embedding = folder_ / "embedding.bin", .vocabulary = {}});
  const auto expected = tensor_specs(model_.config, model_.weights);
  const auto got = tensor_specs(back.config, back.weights);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(got[i].values->size(), expected[i].values->size());
    EXPECT_TRUE(std::equal(got[i].values->begin(), got[i].values->end(), expected[i].values->begin()))
        << expected[i].name;
  }
}

TEST_F(SchoolFormat, a_byte_more_or_less_is_an_error) {
  write_school_model(folder_, model_);
  const fs::path path = folder_ / "params.bin";
  const uintmax_t size = fs::file_size(path);
  for (const uintmax_t wrong : {size - 1, size + 1, uintmax_t{0}}) {
    fs::resize_file(path, wrong);
    EXPECT_THROW(read_school_model(model_.config, {.params = path, .embedding = {}, .vocabulary = {}}), Error) << wrong;
  }
}

TEST_F(SchoolFormat, embeddings_are_channel_major) {
  const int64_t length = model_.config.sequence_length;
  std::vector<int32_t> ids(static_cast<size_t>(2 * length));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7) % 100);
  std::ofstream(folder_ / "ids.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof(int32_t)));
  EXPECT_EQ(write_embeddings(model_, folder_ / "ids.bin", folder_ / "e.bin"), 2);
  const std::vector<float> values = floats(folder_ / "e.bin");
  ASSERT_EQ(values.size(), ids.size() * 8);
  for (size_t record = 0; record < 2; ++record) {
    for (size_t c = 0; c < 8; ++c) {
      for (size_t j = 0; j < 16; ++j) {
        ASSERT_EQ(values[(record * 8 + c) * 16 + j],
                  static_cast<float>(ids[record * 16 + j] * 8) + static_cast<float>(c));
      }
    }
  }
}

}  // namespace
}  // namespace tessera::classifier
