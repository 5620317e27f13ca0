// The narrow number formats of the engine: FP8 E4M3, bfloat16 and IEEE half precision, as exact functions
// between bit patterns and Double. Every encoder rounds to nearest, ties to even, in one step from Double; a
// Float argument is exact in Double, so the result is also the one rounding that the engine does from Float.
// It refuses scales: a code here is a number of its own (Quantization.swift adds scales).

/// The value of an FP8 E4M3 code ("e4m3fn": 1 sign, 4 exponent bits with bias 7, 3 mantissa bits).
///
///     e = 0:      (-1)^s * 2^-6 * m/8            (subnormal, smallest 2^-9)
///     e = 1...15: (-1)^s * 2^(e-7) * (1 + m/8)   (largest 0x7e: 448)
///
/// There is no infinity; 0x7f and 0xff are NaN.
public func decodeE4M3(_ code: UInt8) -> Double {
  let sign: Double = code & 0x80 == 0 ? 1 : -1
  let exponent = Int(code >> 3) & 0xf
  let mantissa = Double(code & 0x7)
  if code & 0x7f == 0x7f { return .nan }
  if exponent == 0 { return sign * powerOfTwo(-6) * mantissa / 8 }
  return sign * powerOfTwo(exponent - 7) * (1 + mantissa / 8)
}

/// The E4M3 code nearest to `x`, ties to the even code; beyond ±448, infinities included, the code of ±448.
/// NaN gives 0x7f.
public func encodeE4M3(_ x: Double) -> UInt8 {
  if x.isNaN { return 0x7f }
  let rounded = roundToFormat(x, mantissaBits: 3, smallestExponent: -6)
  let magnitude = min(rounded.magnitude, 448)
  return UInt8(encodeMagnitude(magnitude, mantissaBits: 3, smallestExponent: -6)) | (x.sign == .minus ? 0x80 : 0)
}

/// The value of a bfloat16 bit pattern: the upper half of a Float.
public func decodeBF16(_ bits: UInt16) -> Double {
  Double(Float(bitPattern: UInt32(bits) << 16))
}

/// The bfloat16 nearest to `x`, ties to even (8 exponent bits, 7 mantissa bits). Too large: ±infinity. NaN: 0x7fc0.
public func encodeBF16(_ x: Double) -> UInt16 {
  if x.isNaN { return 0x7fc0 }
  return encodeWithInfinity(x, mantissaBits: 7, smallestExponent: -126, infinity: 0x7f80)
}

/// The value of an IEEE half-precision bit pattern.
public func decodeF16(_ bits: UInt16) -> Double {
  let sign: Double = bits & 0x8000 == 0 ? 1 : -1
  let exponent = Int(bits >> 10) & 0x1f
  let mantissa = Double(bits & 0x3ff)
  if exponent == 0 { return sign * powerOfTwo(-14) * mantissa / 1024 }
  if exponent == 31 { return mantissa == 0 ? sign * .infinity : .nan }
  return sign * powerOfTwo(exponent - 15) * (1 + mantissa / 1024)
}

/// The half-precision number nearest to `x`, ties to even (5 exponent bits, 10 mantissa bits). From 65520 on:
/// ±infinity. NaN: 0x7e00.
public func encodeF16(_ x: Double) -> UInt16 {
  if x.isNaN { return 0x7e00 }
  return encodeWithInfinity(x, mantissaBits: 10, smallestExponent: -14, infinity: 0x7c00)
}

/// `x` as it reads back after being stored as bfloat16, half precision, E4M3 or Float.
public func roundedToBF16(_ x: Double) -> Double { decodeBF16(encodeBF16(x)) }
public func roundedToF16(_ x: Double) -> Double { decodeF16(encodeF16(x)) }
public func roundedToE4M3(_ x: Double) -> Double { decodeE4M3(encodeE4M3(x)) }
public func roundedToFloat(_ x: Double) -> Double { Double(Float(x)) }

/// 2^exponent, exact.
func powerOfTwo(_ exponent: Int) -> Double { Double(sign: .plus, exponent: exponent, significand: 1) }

/// `x` rounded to `mantissaBits` bits behind the leading one; below 2^smallestExponent the spacing no longer
/// shrinks (subnormals). The range is not limited above.
private func roundToFormat(_ x: Double, mantissaBits: Int, smallestExponent: Int) -> Double {
  if x == 0 || !x.isFinite { return x }
  let exponent = max(Int(x.exponent), smallestExponent)
  let spacing = powerOfTwo(exponent - mantissaBits)
  // The quotient by a power of two is exact, and an even multiple of the spacing is an even code.
  return (x / spacing).rounded(.toNearestOrEven) * spacing
}

/// Exponent and mantissa fields of a magnitude that the format represents exactly.
private func encodeMagnitude(_ magnitude: Double, mantissaBits: Int, smallestExponent: Int) -> UInt16 {
  let steps = powerOfTwo(mantissaBits)
  if magnitude < powerOfTwo(smallestExponent) {
    return UInt16(magnitude / powerOfTwo(smallestExponent) * steps)
  }
  let exponent = Int(magnitude.exponent)
  let mantissa = UInt16((magnitude / powerOfTwo(exponent) - 1) * steps)
  return UInt16(exponent - smallestExponent + 1) << UInt16(mantissaBits) | mantissa
}

private func encodeWithInfinity(
  _ x: Double, mantissaBits: Int, smallestExponent: Int, infinity: UInt16
) -> UInt16 {
  let sign: UInt16 = x.sign == .minus ? 0x8000 : 0
  let magnitude = roundToFormat(x, mantissaBits: mantissaBits, smallestExponent: smallestExponent).magnitude
  if !magnitude.isFinite { return sign | infinity }
  // Exponents of BF16 and F16 are symmetric: the largest is 1 - smallest.
  if Int(magnitude.exponent) > 1 - smallestExponent { return sign | infinity }
  return sign | encodeMagnitude(magnitude, mantissaBits: mantissaBits, smallestExponent: smallestExponent)
}
