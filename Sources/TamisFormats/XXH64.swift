// The checksum of our own files: XXH64 with seed 0 (Y. Collet, the xxHash specification), which many tools can compute.
// It finds damage by accident; it is no protection against somebody who wants to deceive. Refuses nothing.

package struct XXH64 {
  package static let stripe = 32

  private static let prime1: UInt64 = 0x9E37_79B1_85EB_CA87
  private static let prime2: UInt64 = 0xC2B2_AE3D_27D4_EB4F
  private static let prime3: UInt64 = 0x1656_67B1_9E37_79F9
  private static let prime4: UInt64 = 0x85EB_CA77_C2B2_AE63
  private static let prime5: UInt64 = 0x27D4_EB2F_1656_67C5

  private var lanes = SIMD4<UInt64>(prime1 &+ prime2, prime2, 0, 0 &- prime1)
  private var length: UInt64 = 0

  package init() {}

  package static func of(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
    var sum = XXH64()
    let whole = bytes.count / stripe &* stripe
    sum.add(UnsafeRawBufferPointer(start: bytes.baseAddress, count: whole))
    return sum.finished(UnsafeRawBufferPointer(start: bytes.baseAddress?.advanced(by: whole), count: bytes.count &- whole))
  }

  /// A whole number of stripes (what is left over is not added).
  package mutating func add(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress else { return }
    var (a, b, c, d) = (lanes.x, lanes.y, lanes.z, lanes.w)
    let end = bytes.count / Self.stripe &* Self.stripe
    var at = 0
    while at < end {
      a = Self.round(a, Self.word(base + at))
      b = Self.round(b, Self.word(base + at + 8))
      c = Self.round(c, Self.word(base + at + 16))
      d = Self.round(d, Self.word(base + at + 24))
      at &+= Self.stripe
    }
    lanes = SIMD4(a, b, c, d)
    length &+= UInt64(truncatingIfNeeded: end)
  }

  /// The sum of what was added and a tail shorter than a stripe.
  package func finished(_ tail: UnsafeRawBufferPointer) -> UInt64 {
    var sum: UInt64
    if length > 0 {
      sum = Self.rotated(lanes.x, 1) &+ Self.rotated(lanes.y, 7) &+ Self.rotated(lanes.z, 12) &+ Self.rotated(lanes.w, 18)
      sum = Self.joined(Self.joined(Self.joined(Self.joined(sum, lanes.x), lanes.y), lanes.z), lanes.w)
    } else {
      sum = Self.prime5
    }
    sum &+= length &+ UInt64(truncatingIfNeeded: tail.count)
    if let base = tail.baseAddress {
      var at = 0
      while at &+ 8 <= tail.count {
        sum = Self.rotated(sum ^ Self.round(0, Self.word(base + at)), 27) &* Self.prime1 &+ Self.prime4
        at &+= 8
      }
      if at &+ 4 <= tail.count {
        let half = UInt64(UInt32(littleEndian: (base + at).loadUnaligned(as: UInt32.self)))
        sum = Self.rotated(sum ^ half &* Self.prime1, 23) &* Self.prime2 &+ Self.prime3
        at &+= 4
      }
      while at < tail.count {
        let byte = UInt64((base + at).load(as: UInt8.self))
        sum = Self.rotated(sum ^ byte &* Self.prime5, 11) &* Self.prime1
        at &+= 1
      }
    }
    sum = (sum ^ sum &>> 33) &* Self.prime2
    sum = (sum ^ sum &>> 29) &* Self.prime3
    return sum ^ sum &>> 32
  }

  @inline(__always)
  private static func word(_ at: UnsafeRawPointer) -> UInt64 { UInt64(littleEndian: at.loadUnaligned(as: UInt64.self)) }

  @inline(__always)
  private static func rotated(_ value: UInt64, _ bits: UInt64) -> UInt64 { value &<< bits | value &>> (64 &- bits) }

  private static func joined(_ sum: UInt64, _ lane: UInt64) -> UInt64 { (sum ^ round(0, lane)) &* prime1 &+ prime4 }

  @inline(__always)
  private static func round(_ lane: UInt64, _ word: UInt64) -> UInt64 {
    rotated(lane &+ word &* prime2, 31) &* prime1
  }
}
