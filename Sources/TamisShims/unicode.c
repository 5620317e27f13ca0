/* Binary searches in the tables of Unicode normalisation; TamisShims.h says what they answer. */
#include "TamisShims.h"

struct decomposition {
  uint32_t scalar;
  uint16_t at;
  uint8_t canonical, compatible;
};
struct composition {
  uint32_t first, second, composed;
};
struct class {
  uint32_t first, last;
  uint8_t combining;
};

#include "unicode_tables.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

uint32_t tamis_shims_decompose(uint32_t scalar, uint32_t compatible, const uint32_t **found) {
  size_t low = 0, high = COUNT(decompositions);
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (decompositions[middle].scalar < scalar) low = middle + 1;
    else high = middle;
  }
  if (low == COUNT(decompositions) || decompositions[low].scalar != scalar) return 0;
  const struct decomposition *entry = &decompositions[low];
  const int other = compatible != 0 && entry->compatible != 0;
  *found = &parts[entry->at + (other ? entry->canonical : 0)];
  return other ? entry->compatible : entry->canonical;
}

uint32_t tamis_shims_compose(uint32_t first, uint32_t second) {
  const uint64_t wanted = (uint64_t)first << 32 | second;
  size_t low = 0, high = COUNT(compositions);
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const struct composition *entry = &compositions[middle];
    if (((uint64_t)entry->first << 32 | entry->second) < wanted) low = middle + 1;
    else high = middle;
  }
  if (low == COUNT(compositions) || compositions[low].first != first || compositions[low].second != second) return 0;
  return compositions[low].composed;
}

uint8_t tamis_shims_combining_class(uint32_t scalar) {
  size_t low = 0, high = COUNT(classes);
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (classes[middle].last < scalar) low = middle + 1;
    else high = middle;
  }
  return low < COUNT(classes) && classes[low].first <= scalar ? classes[low].combining : 0;
}
