// Numbers for tests that are the same on every machine and in every run: SplitMix64 and what is drawn from it.
// It refuses to be seeded from anything but the test.

#if canImport(Darwin)
  import Darwin
#elseif canImport(Musl)
  import Musl
#else
  import Glibc
#endif

/// SplitMix64 (Steele, Lea and Flood, 2014). Equal seeds give equal streams.
public struct SplitMix64: RandomNumberGenerator, Sendable {
  private var state: UInt64

  public init(seed: UInt64) { state = seed }

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

  /// Uniform in 0 ..< bound.
  public mutating func integer(below bound: Int) -> Int { Int(next() % UInt64(bound)) }

  /// Normal with mean 0 and deviation 1 (Box and Muller), rounded to Float: the engine, which is given Floats, and
  /// the reference see the same number.
  public mutating func normal() -> Double {
    let radius = (-2 * log(1 - uniform())).squareRoot()
    return roundedToFloat(radius * cos(2 * Double.pi * uniform()))
  }

  /// `count` normal numbers of the given deviation, each rounded to Float.
  public mutating func normals(_ count: Int, deviation: Double = 1) -> [Double] {
    (0..<count).map { _ in roundedToFloat(normal() * deviation) }
  }
}
