// Owns the look for infinity and NaN before rows become 8-bit numbers, which have no infinity: a refused call must
// not have written anything, so every row is looked at before the first is stored. It reads the caller's numbers as
// bits: adding to the magnitude carries into the sign bit when, and only when, the exponent is too large.

import Synchronization
import TamisKernels
import TamisRuntime

package enum Finite {
  /// Are all n numbers of a row of F32, F16 or BF16 finite?
  package static func row(_ dtype: DType, _ source: UnsafeRawPointer, _ n: Int) -> Bool {
    switch dtype {
    case .f32: words(source, n, below: Float.infinity)
    case .f16: halves(source, n, below: 0x7c00)
    default: halves(source, n, below: 0x7f80)
    }
  }

  /// The same for the row's Hadamard rotation, whose sums may overflow. floats [n] are overwritten.
  static func rotated(
    _ dtype: DType, _ source: UnsafeRawPointer, _ n: Int, _ floats: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<tk_table>
  ) -> Bool {
    let small: Float = 0x1p64  // sums of up to 2^31 such numbers are finite
    switch dtype {
    case .f32: if words(source, n, below: small) { return true }
    case .f16: return halves(source, n, below: 0x7c00)
    default: if halves(source, n, below: UInt16(truncatingIfNeeded: small.bitPattern >> 16)) { return true }
    }
    loadFloats(dtype, source, nil, 1, n, to: floats, kernels)
    kernels.pointee.hadamard(floats, Int64(n))
    return words(floats, n, below: Float.infinity)
  }

  /// |x| < limit for n floats; limit is a power of two or infinity.
  private static func words(_ source: UnsafeRawPointer, _ n: Int, below limit: Float) -> Bool {
    let carry = 0x8000_0000 &- limit.bitPattern
    var seen = SIMD16<UInt32>(repeating: 0)
    var at = 0
    while at &+ 16 <= n {
      let x = source.loadUnaligned(fromByteOffset: at &* 4, as: SIMD16<UInt32>.self)
      seen |= (x & 0x7fff_ffff) &+ carry
      at &+= 16
    }
    var rest = seen[0]
    for lane in 1..<16 { rest |= seen[lane] }
    while at < n {
      rest |= (source.loadUnaligned(fromByteOffset: at &* 4, as: UInt32.self) & 0x7fff_ffff) &+ carry
      at &+= 1
    }
    return rest & 0x8000_0000 == 0
  }

  /// The same for n 16-bit floats; limit: bits of a power of two or infinity.
  private static func halves(_ source: UnsafeRawPointer, _ n: Int, below limit: UInt16) -> Bool {
    let carry = 0x8000 &- limit
    var seen = SIMD32<UInt16>(repeating: 0)
    var at = 0
    while at &+ 32 <= n {
      let x = source.loadUnaligned(fromByteOffset: at &* 2, as: SIMD32<UInt16>.self)
      seen |= (x & 0x7fff) &+ carry
      at &+= 32
    }
    var rest = seen[0]
    for lane in 1..<32 { rest |= seen[lane] }
    while at < n {
      rest |= (source.loadUnaligned(fromByteOffset: at &* 2, as: UInt16.self) & 0x7fff) &+ carry
      at &+= 1
    }
    return rest & 0x8000 == 0
  }
}
