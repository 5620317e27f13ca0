// The random numbers of a fit: a function of the seed alone, the same on every machine. It refuses any other source.

import Glibc

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SeededRandom {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// 0 ..< bound; bound at least 1. The bias is below bound / 2^64.
  mutating func integer(below bound: Int) -> Int {
    Int(truncatingIfNeeded: next().multipliedFullWidth(by: UInt64(truncatingIfNeeded: max(bound, 1))).high)
  }

  /// Mean 0, deviation 1 (Box and Muller).
  mutating func normal() -> Float {
    let radius = (-2 * log(1 - uniform())).squareRoot()
    return Float(radius * cos(2 * Double.pi * uniform()))
  }

  /// [0, 1), a multiple of 2^-53.
  private mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }
}
