// Work as a function of the context: every part of a token's work is a constant, or grows with the keys it can see,
// or grows with the keys until the top-k is full. Sums over positions are therefore closed forms, and a choice between
// ways of doing the work is a handful of intervals in which one way is the cheapest.

/// `fixed + perKey·n + perSelected·min(n, cap)` for a token that sees n keys.
package struct Ramp: Sendable, Equatable {
  package var fixed = 0.0
  package var perKey = 0.0
  package var perSelected = 0.0

  package func at(_ keys: Double, cap: Double) -> Double {
    fixed + perKey * keys + perSelected * min(keys, cap)
  }

  /// Sum over the tokens that see `keys.lowerBound ..< keys.upperBound` keys.
  package func sum(_ keys: Range<Int>, cap: Int) -> Double {
    let split = min(max(cap, keys.lowerBound), keys.upperBound)
    let below = Ramp.triangle(keys.lowerBound, split)
    let above = Double(keys.upperBound &- split) * Double(cap)
    let count = Double(keys.upperBound &- keys.lowerBound)
    return fixed * count + perKey * Ramp.triangle(keys.lowerBound, keys.upperBound) + perSelected * (below + above)
  }

  package static func + (left: Ramp, right: Ramp) -> Ramp {
    Ramp(
      fixed: left.fixed + right.fixed, perKey: left.perKey + right.perKey,
      perSelected: left.perSelected + right.perSelected)
  }

  package static func * (left: Ramp, factor: Double) -> Ramp {
    Ramp(fixed: left.fixed * factor, perKey: left.perKey * factor, perSelected: left.perSelected * factor)
  }

  /// a + (a+1) + … + (b−1)
  private static func triangle(_ a: Int, _ b: Int) -> Double {
    (Double(b) - Double(a)) * (Double(a) + Double(b) - 1) / 2
  }
}

/// The way the core runs for a token.
package enum Path: String, Sendable { case dense, masked, sparse }

/// One way to process a token, with what it takes.
package struct Way: Sendable, Equatable {
  package var path: Path
  package var seconds: Ramp
  package var flops: Ramp
  package var bytes: Ramp
  /// Tokens that see more keys than this may not take this way: it would be another function.
  package var mostKeys = Int.max
}

/// Seconds, FLOP and bytes of some tokens.
package struct Work: Sendable, Equatable {
  package var seconds = 0.0
  package var flops = 0.0
  package var bytes = 0.0

  package init() {}

  fileprivate init(seconds: Double, flops: Double, bytes: Double) {
    self.seconds = seconds
    self.flops = flops
    self.bytes = bytes
  }

  package static func + (left: Work, right: Work) -> Work {
    Work(seconds: left.seconds + right.seconds, flops: left.flops + right.flops, bytes: left.bytes + right.bytes)
  }
}

/// The cheapest of one or more ways, position by position.
package struct Curve: Sendable, Equatable {
  package let ways: [Way]
  package let cap: Int

  /// Numbers of keys beyond this are refused by the callers; sums of squares stay far inside a Double.
  package static let mostKeys = 1 << 40

  package func way(at keys: Int) -> Way? {
    var best: Way?
    var least = Double.infinity
    for way in ways where keys <= way.mostKeys {
      let seconds = way.seconds.at(Double(keys), cap: Double(cap))
      if seconds < least {
        least = seconds
        best = way
      }
    }
    return best
  }

  /// The cheapest way of a piece between two cuts; asked in its middle, where rounding at a cut cannot reach.
  package func way(in piece: Range<Int>) -> Way? {
    way(at: piece.lowerBound &+ (piece.upperBound &- piece.lowerBound) / 2)
  }

  package func seconds(at keys: Int) -> Double { work(at: keys).seconds }

  package func work(at keys: Int) -> Work {
    guard let way = way(at: keys) else { return Work() }
    let n = Double(keys)
    let k = Double(cap)
    return Work(seconds: way.seconds.at(n, cap: k), flops: way.flops.at(n, cap: k), bytes: way.bytes.at(n, cap: k))
  }

  /// Work of the tokens that see `keys.lowerBound ..< keys.upperBound` keys.
  package func work(over keys: Range<Int>) -> Work {
    var total = Work()
    for piece in Curve.pieces(of: keys, cuts: cuts) {
      guard let way = way(in: piece) else { continue }
      total =
        total
        + Work(
          seconds: way.seconds.sum(piece, cap: cap), flops: way.flops.sum(piece, cap: cap),
          bytes: way.bytes.sum(piece, cap: cap))
    }
    return total
  }

  /// Numbers of keys at which the cheapest way can change: after the last key a way allows, and after each crossing.
  package var cuts: [Int] {
    var found = [Curve.clamp(cap)]
    for (index, way) in ways.enumerated() {
      if way.mostKeys < Curve.mostKeys { found.append(way.mostKeys &+ 1) }
      for other in ways[..<index] {
        found += Curve.crossings(way.seconds, other.seconds, cap: cap).map { Curve.clamp($0.rounded(.up)) }
      }
    }
    return found
  }

  /// Where two ramps are equal, on either side of the cap.
  package static func crossings(_ left: Ramp, _ right: Ramp, cap: Int) -> [Double] {
    let difference = left + right * -1
    let k = Double(cap)
    var found: [Double] = []
    let slopeBelow = difference.perKey + difference.perSelected
    if slopeBelow != 0 {
      let n = -difference.fixed / slopeBelow
      if n >= 0, n <= k { found.append(n) }
    }
    if difference.perKey != 0 {
      let n = -(difference.fixed + difference.perSelected * k) / difference.perKey
      if n > k { found.append(n) }
    }
    return found
  }

  package static func pieces(of range: Range<Int>, cuts: [Int]) -> [Range<Int>] {
    var pieces: [Range<Int>] = []
    var start = range.lowerBound
    for cut in cuts.sorted() + [range.upperBound] where cut > start && cut <= range.upperBound {
      pieces.append(start..<cut)
      start = cut
    }
    return pieces
  }

  private static func clamp(_ keys: Int) -> Int { min(max(keys, 0), mostKeys) }
  private static func clamp(_ keys: Double) -> Int {
    keys >= Double(mostKeys) ? mostKeys : Int(max(keys, 0))
  }
}
