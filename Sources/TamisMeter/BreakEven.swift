// The break-even context: from how many tokens on sparse attention is cheaper than dense. Below it DSA costs more,
// and a meter that always prints savings is wrong. There are three: one decoded token, one prefilled token (the
// margin), and a whole prompt, whose cheap beginning has to be paid back first.

package enum BreakEvenKind: Sendable { case decode, prefillMargin, wholePrompt }

/// Contexts from which on sparse pays, by the low, mid and high cost of sparse against dense; nil: not within the
/// range asked.
package struct BreakEven: Sendable, Equatable {
  package var low: Double?
  package var mid: Double?
  package var high: Double?
  package var basis: Basis
}

extension Predictor {
  package func breakEven(_ kind: BreakEvenKind, _ mode: Mode = .sparse, within mostKeys: Int = 1 << 24) -> BreakEven {
    let phase: PhaseKind = kind == .decode ? .decode : .prefill
    let dense = curve(phase, .dense)
    let sparse = curve(phase, mode)
    let range = 0..<min(max(mostKeys, 1), Curve.mostKeys)
    let at = { (factor: Double) -> Double? in
      let rival = sparse.scaled(by: factor)
      return kind == .wholePrompt ? dense.payback(against: rival, in: range) : dense.crossing(against: rival, in: range)
    }
    let ratio = machine.trust.ratio
    return BreakEven(low: at(1 - ratio), mid: at(1), high: at(1 + ratio), basis: machine.basis)
  }
}

extension Curve {
  package func scaled(by factor: Double) -> Curve {
    Curve(
      ways: ways.map { way in
        var scaled = way
        scaled.seconds = way.seconds * factor
        return scaled
      }, cap: cap)
  }

  /// The context beyond which `rival` stays cheaper than this curve up to the end of the range.
  fileprivate func crossing(against rival: Curve, in range: Range<Int>) -> Double? {
    var answer: Double? = 0
    for piece in Curve.pieces(of: range, cuts: cuts + rival.cuts) {
      guard let mine = way(in: piece), let other = rival.way(in: piece) else { continue }
      let gain = mine.seconds + other.seconds * -1
      let start = gain.at(Double(piece.lowerBound), cap: Double(cap))
      let end = gain.at(Double(piece.upperBound), cap: Double(cap))
      if end <= 0 {
        answer = nil
      } else if start <= 0 {
        answer = Double(piece.lowerBound) + Double(piece.count) * -start / (end - start)
      } else if answer == nil {
        answer = Double(piece.lowerBound)
      }
    }
    return answer
  }

  /// The shortest prompt from which on all tokens together are cheaper with `rival`.
  fileprivate func payback(against rival: Curve, in range: Range<Int>) -> Double? {
    var answer: Double? = 0
    var saved = 0.0
    for piece in pieces(against: rival, in: range) {
      let after = saved + gain(over: piece, against: rival)
      if after <= 0 {
        answer = nil
      } else if answer == nil {
        answer = Double(bisect(piece, saved, against: rival))
      }
      saved = after
    }
    return answer
  }

  /// Pieces in which the gain per token keeps its sign, so that the sum moves one way.
  private func pieces(against rival: Curve, in range: Range<Int>) -> [Range<Int>] {
    var all = cuts + rival.cuts
    for mine in ways {
      for other in rival.ways {
        let crossings = Curve.crossings(mine.seconds, other.seconds, cap: cap)
        all += crossings.filter { $0 < Double(range.upperBound) }.map { Int($0.rounded(.up)) }
      }
    }
    return Curve.pieces(of: range, cuts: all)
  }

  private func gain(over keys: Range<Int>, against rival: Curve) -> Double {
    work(over: keys).seconds - rival.work(over: keys).seconds
  }

  private func bisect(_ piece: Range<Int>, _ saved: Double, against rival: Curve) -> Int {
    var low = piece.lowerBound
    var high = piece.upperBound
    while high &- low > 1 {
      let middle = low &+ (high &- low) / 2
      if saved + gain(over: piece.lowerBound..<middle, against: rival) <= 0 { low = middle } else { high = middle }
    }
    return high
  }
}
