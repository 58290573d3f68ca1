// Code of the consuming project, with habits of its own: Tessera's warnings would refuse each of these lines, and must
// not be switched on here.
#include "tessera/batching/plan.h"

int careless(double value, int unused) {
  int truncated = value * 1.5;
  int num_tiles = tessera::batching::BatchPlan().num_tiles();
  {
    unsigned value = -1;
    truncated += value > truncated;
  }
  return truncated + num_tiles;
}
