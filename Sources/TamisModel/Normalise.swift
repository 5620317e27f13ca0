// The two norms of the family, in fp32, a row at a time; sums run in eight lanes with one fixed tree, so a row's bits
// depend on nothing but the row.

enum Normalise {
  private typealias Lanes = SIMD8<Float>

  /// y = x / sqrt(mean(x^2) + epsilon) * gain; y may be x.
  static func rms(
    _ x: UnsafePointer<Float>, gain: UnsafePointer<Float>, epsilon: Float, count: Int, to y: UnsafeMutablePointer<Float>
  ) {
    let factor = 1 / (sum(count) { x[$0] * x[$0] } / Float(count) + epsilon).squareRoot()
    for i in 0..<count { y[i] = x[i] * factor * gain[i] }
  }

  /// y = (x - mean) / sqrt(variance + epsilon) * gain + bias; y may be x.
  static func layer(
    _ x: UnsafePointer<Float>, gain: UnsafePointer<Float>, bias: UnsafePointer<Float>, epsilon: Float, count: Int,
    to y: UnsafeMutablePointer<Float>
  ) {
    let mean = sum(count) { x[$0] } / Float(count)
    let variance = sum(count) { (x[$0] - mean) * (x[$0] - mean) } / Float(count)
    let factor = 1 / (variance + epsilon).squareRoot()
    for i in 0..<count { y[i] = (x[i] - mean) * factor * gain[i] + bias[i] }
  }

  @inline(__always)
  private static func sum(_ count: Int, _ term: (Int) -> Float) -> Float {
    var lanes = Lanes(repeating: 0)
    var i = 0
    while i &+ 8 <= count {
      lanes += Lanes(
        term(i), term(i &+ 1), term(i &+ 2), term(i &+ 3), term(i &+ 4), term(i &+ 5), term(i &+ 6), term(i &+ 7))
      i &+= 8
    }
    var total = lanes.sum()
    while i < count {
      total += term(i)
      i &+= 1
    }
    return total
  }
}
