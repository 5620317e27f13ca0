// Scaled 8-bit numbers and the rotation that precedes them in the indexer: one scale for each `block`
// consecutive elements, value = code * scale. Scales are Floats in every cache, so the scales here are rounded
// to Float; codes are then exact roundings of the true quotient. It refuses to guess at infinities and NaN:
// callers quantise finite numbers only.

/// Codes of rows with one scale for each `block` elements of a row; the last block of a row may be shorter.
public struct Quantized<Code> {
  public let codes: [Code]
  public let scales: [Double]
}

/// FP8 E4M3 with one scale per block (DeepSeek-V3.2-Exp inference/kernel.py, act_quant):
///
///     a = max(max_i |x_i|, 1e-4);  scale = a / 448;  code_i = e4m3(clamp(x_i / scale, ±448))
///
/// With `powerOfTwo` (scale_fmt "ue8m0") the scale is rounded up to 2^ceil(log2(a / 448)).
/// `x` is made of rows of `row` elements (nil: one row), scales [rows, ceil(row / block)].
public func quantizeE4M3(_ x: [Double], block: Int, row: Int? = nil, powerOfTwo: Bool) -> Quantized<UInt8> {
  var codes: [UInt8] = []
  var scales: [Double] = []
  for values in blocks(of: x, block, row: row) {
    let scale = e4m3Scale(largest: largestMagnitude(values), powerOfTwo: powerOfTwo)
    scales.append(scale)
    codes += values.map { encodeE4M3($0 / scale) }
  }
  return Quantized(codes: codes, scales: scales)
}

/// The E4M3 scale for a block whose largest magnitude is `largest`.
public func e4m3Scale(largest: Double, powerOfTwo: Bool) -> Double {
  let floor = roundedToFloat(1e-4)
  let scale = roundedToFloat(max(largest, floor) / 448)
  if !powerOfTwo || scale == scale.binade { return scale }
  return 2 * scale.binade
}

/// Symmetric INT8 with one scale per block: scale = max_i |x_i| / 127, code_i = round(x_i / scale), ties to even,
/// so codes lie in -127...127. A block of zeros has scale 1 and codes 0. Rows as in `quantizeE4M3`.
public func quantizeINT8(_ x: [Double], block: Int, row: Int? = nil) -> Quantized<Int8> {
  var codes: [Int8] = []
  var scales: [Double] = []
  for values in blocks(of: x, block, row: row) {
    let quotient = roundedToFloat(largestMagnitude(values) / 127)
    let scale = quotient == 0 ? 1 : quotient
    scales.append(scale)
    codes += values.map { Int8(min(127, max(-127, ($0 / scale).rounded(.toNearestOrEven)))) }
  }
  return Quantized(codes: codes, scales: scales)
}

/// value = e4m3(code) * scale of its block.
public func dequantizeE4M3(_ codes: [UInt8], scales: [Double], block: Int, row: Int? = nil) -> [Double] {
  scaled(codes.map(decodeE4M3), scales, block, row: row)
}

/// value = code * scale of its block.
public func dequantizeINT8(_ codes: [Int8], scales: [Double], block: Int, row: Int? = nil) -> [Double] {
  scaled(codes.map(Double.init), scales, block, row: row)
}

/// The orthonormal Hadamard rotation of one vector, whose length n is a power of two:
///
///     y_i = n^-1/2 * sum_j (-1)^popcount(i & j) * x_j       (Sylvester, "natural", order)
///
/// The matrix is symmetric and its own inverse. Rotating both sides of a dot product leaves it unchanged;
/// rotating one side does not.
public func rotateHadamard(_ x: [Double]) -> [Double] {
  precondition(x.count > 0 && x.count & (x.count - 1) == 0, "the length is a power of two")
  let norm = 1 / Double(x.count).squareRoot()
  return x.indices.map { i in
    var sum = 0.0
    for j in x.indices {
      sum += (i & j).nonzeroBitCount % 2 == 0 ? x[j] : -x[j]
    }
    return sum * norm
  }
}

/// The rotation applied to each consecutive run of `length` elements.
public func rotateHadamard(_ x: [Double], length: Int) -> [Double] {
  blocks(of: x, length, row: length).flatMap { rotateHadamard($0) }
}

private func blocks(of x: [Double], _ block: Int, row: Int?) -> [[Double]] {
  let row = row ?? x.count
  precondition(block > 0 && (x.isEmpty || x.count.isMultiple(of: row)), "a whole number of rows")
  return stride(from: 0, to: x.count, by: max(row, 1)).flatMap { start in
    stride(from: start, to: start + row, by: block).map { Array(x[$0..<min($0 + block, start + row)]) }
  }
}

private func scaled(_ numbers: [Double], _ scales: [Double], _ block: Int, row: Int?) -> [Double] {
  let row = max(row ?? numbers.count, 1)
  let blocksInRow = (row + block - 1) / block
  return numbers.indices.map { numbers[$0] * scales[$0 / row * blocksInRow + $0 % row / block] }
}

private func largestMagnitude(_ x: [Double]) -> Double { x.reduce(0) { max($0, $1.magnitude) } }
