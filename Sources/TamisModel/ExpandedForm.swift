// The rule for the form of attention, by multiply-adds of one layer for one row at position p, with H heads:
//
//   absorbed   min(k, p) keys x H x (latent + rope + latent), and W_UK and W_UV once: H x latent x (nope + value)
//   expanded   p keys x H x (nope + rope + value), and its share of expanding p latents for R rows:
//              p x H x latent x (nope + value) / R
//
// Both grow with p, the absorbed one only up to k; so the expanded form is cheaper up to some position, nowhere, or
// everywhere where nothing is selected. Heads of the absorbed form count in tiles of 16, which its kernels compute. An
// expanded multiply-add counts by a weight of the kernels: not all reach the same share of their peak in both forms.

import TamisKernels
package import TamisRuntime

package enum ExpandedForm {
  /// Fewer rows than this are not worth the expansion, whatever the count says.
  package static let fewestRows = 32

  /// How many times as long an expanded multiply-add takes as an absorbed one, attention and the products around it
  /// together, as benchmarks/forms.py measures. What was not measured counts alike: fp32, and the other kernels.
  @inline(never)  // one copy, whoever calls
  package static func weight(_ context: Context, floats: Bool) -> Double {
    guard !floats, let kernels: UnsafePointer<CChar> = context.kernels.pointee.name else { return 1 }
    switch String(cString: kernels) {
    // Zen 4: 1.8, docs/benchmarks/forms-1.csv.
    case "avx512": return 1.8
    // AMX: 0.6 to 1.2 on a loaded machine, before masks were fast: to be measured again.
    default: return 1
    }
  }

  /// The position from which on rows are cheaper absorbed; 0: all are. rows: that share an expansion; selected: keys
  /// that a row selects, 0: it attends to all.
  @inline(never)  // one copy, whoever calls
  package static func end(_ config: ModelConfig, rows: Int, selected: Int, weight: Double) -> Int {
    guard rows >= fewestRows else { return 0 }
    let heads = Double(config.heads)
    let up = heads * Double(config.latent) * Double(config.nope &+ config.value)
    let expanded = weight * (heads * Double(config.queryDim &+ config.value) + up / Double(rows))
    let tiles = Double((config.heads &+ 15) / 16 &* 16)
    let absorbed = tiles * Double(config.keyDim &+ config.latent)
    // While every key is selected; behind that the absorbed form costs no more.
    let early = expanded < absorbed ? .infinity : up / (expanded - absorbed)
    let crossing =
      selected == 0 || early <= Double(selected) ? early : (Double(selected) * absorbed + up) / expanded
    return crossing >= Double(config.maxPositions) ? config.maxPositions : Int(crossing)
  }
}
