// The oracle against numbers worked out by hand.
#include "cpu/reference.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tessera/core/check.h"

namespace tessera::cpu::reference {
namespace {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

TEST(Reference, ConvReluMax) {
  // Two channels, four positions, width 2: windows 0, 1, 2.
  const Doubles x = {1,  2, 3, 4,         //
                     -1, 0, 2, -5};       //
  const Floats weight = {1,  0,  0, 10,   // filter 0: x[0, j] + 10 x[1, j + 1]:     1, 22, -47
                         -1, -1, 0, 0,    // filter 1: -(x[0, j] + x[0, j + 1]):    -3, -5, -7
                         0,  0,  1, -1};  // filter 2: x[1, j] - x[1, j + 1]:       -1, -2, 7
  const Floats bias = {0.5f, 1, -2};
  EXPECT_EQ(conv_relu_max(x, 2, 4, weight, bias, 2), (Doubles{22.5, 0, 5}));
}

TEST(Reference, ConvOfTheWholeSequenceHasOneWindow) {
  const Doubles x = {1, 2, 3};
  const Floats weight = {1, 10, 100};
  const Floats bias = {0};
  EXPECT_EQ(conv_relu_max(x, 1, 3, weight, bias, 3), (Doubles{321}));
}

TEST(Reference, Linear) {
  const Floats weight = {1, 2, 3, -1, 0, 0.5f};
  const Floats bias = {10, 20};
  EXPECT_EQ(linear(weight, bias, Doubles{1, 1, 2}), (Doubles{19, 20}));
}

TEST(Reference, Relu) {
  Doubles x = {-1, 0, 2};
  relu(x);
  EXPECT_EQ(x, (Doubles{0, 0, 2}));
}

TEST(Reference, Softmax) {
  const Doubles weights = softmax(Doubles{0, std::log(3.0), 1000 * 0.0});
  EXPECT_NEAR(weights[0], 0.2, 1e-15);
  EXPECT_NEAR(weights[1], 0.6, 1e-15);
  EXPECT_NEAR(weights[2], 0.2, 1e-15);
  EXPECT_EQ(softmax(Doubles{1000, 1000}), (Doubles{0.5, 0.5}));
}

TEST(Reference, Mix) {
  const std::vector<Doubles> y = {{1, 2}, {10, 20}, {100, 200}};
  EXPECT_EQ(mix(Doubles{0.5, 0.25, 0.125}, y), (Doubles{15.5, 31}));
}

TEST(Reference, ShapesAreChecked) {
  const Floats three(3);
  const Floats one(1);
  EXPECT_THROW(linear(three, one, Doubles{1, 2}), ProgrammerError);
  EXPECT_THROW(conv_relu_max(Doubles{1, 2}, 1, 3, three, one, 3), ProgrammerError);
  EXPECT_THROW(conv_relu_max(Doubles{1, 2, 3}, 1, 3, three, one, 2), ProgrammerError);
  EXPECT_THROW(mix(Doubles{1}, {}), ProgrammerError);
}

}  // namespace
}  // namespace tessera::cpu::reference
