// Rotary positions: frequencies with or without YaRN, the scale that YaRN puts on the softmax, and the rotation of
// rows. Frequencies and angles are rounded to Float at the places where the reference model rounds them.

import Glibc
import TamisFormats
import TamisRuntime

package struct RotaryConfig: Sendable {
  struct Yarn: Sendable {
    var factor: Double
    var originalPositions: Double
    var betaFast: Double
    var betaSlow: Double
    var mscale: Double?
    var mscaleAllDim: Double?
    var attentionFactor: Double?
    var truncates: Bool
  }

  let theta: Double
  let yarn: Yarn?

  /// `rope_parameters`, or the older `rope_scaling` with `rope_theta` beside it.
  init(_ root: JSONValue, maxPositions: Int) throws(TamisError) {
    let given = root.member("rope_parameters") ?? root.member("rope_scaling")
    if let given, !given.isObject { throw given.failure("an object") }
    let theta = given?.member("rope_theta") ?? root.member("rope_theta")
    self.theta = try RotaryConfig.number(theta, in: 1.001...1e12) ?? 10_000
    if try RotaryConfig.number(given?.member("partial_rotary_factor"), in: 0...1) ?? 1 != 1 {
      throw unsupported("partial_rotary_factor", "expected 1")
    }
    let type = given?.member("rope_type") ?? given?.member("type")
    guard let given, let type, !type.equals("default") else {
      yarn = nil
      return
    }
    guard type.equals("yarn") else { throw unsupported("rope_type", "expected \"default\" or \"yarn\"") }
    let original = try given.required("original_max_position_embeddings").integer(in: 1...Int(Int32.max))
    let factor = try RotaryConfig.number(given.member("factor"), in: 1...1e6)
    yarn = Yarn(
      factor: factor ?? Double(maxPositions) / Double(original), originalPositions: Double(original),
      betaFast: try RotaryConfig.number(given.member("beta_fast"), in: 1e-3...1e6) ?? 32,
      betaSlow: try RotaryConfig.number(given.member("beta_slow"), in: 1e-3...1e6) ?? 1,
      mscale: try RotaryConfig.number(given.member("mscale"), in: 0...1e3),
      mscaleAllDim: try RotaryConfig.number(given.member("mscale_all_dim"), in: 0...1e3),
      attentionFactor: try RotaryConfig.number(given.member("attention_factor"), in: 1e-6...1e6),
      truncates: try given.member("truncate")?.bool() ?? true)
  }

  private static func number(_ value: JSONValue?, in range: ClosedRange<Double>) throws(TamisError) -> Double? {
    guard let value else { return nil }
    let number = try value.double()
    guard range.contains(number) else { throw value.failure("a number in \(range.lowerBound)...\(range.upperBound)") }
    return number
  }

  /// queryDim^-0.5, times m squared where YaRN asks for it.
  package func softmaxScale(queryDim: Int) -> Float {
    let base = 1 / Double(queryDim).squareRoot()
    guard let yarn, let all = yarn.mscaleAllDim, all != 0 else { return Float(base) }
    let m = RotaryConfig.mscale(yarn.factor, all)
    return Float(base * m * m)
  }

  /// What cosine and sine are multiplied with: 1 where mscale and mscale_all_dim agree, as in DeepSeek's models.
  var amplitude: Float {
    guard let yarn else { return 1 }
    if let given = yarn.attentionFactor { return Float(given) }
    if let m = yarn.mscale, let all = yarn.mscaleAllDim, m != 0, all != 0 {
      return Float(RotaryConfig.mscale(yarn.factor, m) / RotaryConfig.mscale(yarn.factor, all))
    }
    return Float(RotaryConfig.mscale(yarn.factor, 1))
  }

  private static func mscale(_ factor: Double, _ m: Double) -> Double {
    factor <= 1 ? 1 : 0.1 * m * log(factor) + 1
  }

  /// [dims / 2]
  package func frequencies(dims: Int) -> [Float] {
    let half = dims / 2
    let periods = (0..<half).map { Float(pow(theta, Double(Float(2 &* $0) / Float(dims)))) }
    guard let yarn else { return periods.map { 1 / $0 } }
    func correction(_ rotations: Double) -> Double {
      Double(dims) * log(yarn.originalPositions / (rotations * 2 * Double.pi)) / (2 * log(theta))
    }
    var low = correction(yarn.betaFast)
    var high = correction(yarn.betaSlow)
    if yarn.truncates {
      low = low.rounded(.down)
      high = high.rounded(.up)
    }
    low = max(low, 0)
    high = min(high, Double(dims &- 1))
    if low == high { high += 0.001 }
    return periods.enumerated().map { i, period in
      let ramp = min(max((Float(i) - Float(low)) / Float(high - low), 0), 1)
      let kept = 1 - ramp
      return 1 / (Float(yarn.factor) * period) * (1 - kept) + 1 / period * kept
    }
  }
}

/// Cosine and sine of each row's angles.
struct RotaryRows {
  let half: Int
  let cosine: UnsafeMutablePointer<Float>  // [rows, half]
  let sine: UnsafeMutablePointer<Float>

  func fill(row: Int, position: Int, _ frequencies: [Float], amplitude: Float) {
    for (i, frequency) in frequencies.enumerated() {
      let angle = Double(Float(position) * frequency)
      cosine[row &* half &+ i] = Float(cos(angle)) * amplitude
      sine[row &* half &+ i] = Float(sin(angle)) * amplitude
    }
  }

  /// x [2 half], pairs (2i, 2i+1) or (i, i + half), rotated in place.
  func rotate(_ x: UnsafeMutablePointer<Float>, row: Int, interleaved: Bool) {
    let (step, apart) = interleaved ? (2, 1) : (1, half)
    for i in 0..<half {
      let (c, s) = (cosine[row &* half &+ i], sine[row &* half &+ i])
      let (a, b) = (x[i &* step], x[i &* step &+ apart])
      x[i &* step] = a * c - b * s
      x[i &* step &+ apart] = b * c + a * s
    }
  }
}
