// The rule for the form of attention, by multiply-adds of one layer for one row at position p, with H heads:
//
//   absorbed   min(k, p) keys x H x (latent + rope + latent), and W_UK and W_UV once: H x latent x (nope + value)
//   expanded   p keys x H x (nope + rope + value), and its share of expanding p latents for R rows:
//              p x H x latent x (nope + value) / R
//
// Both grow with p, the absorbed one only up to k; so the expanded form is cheaper up to some position, nowhere, or
// everywhere where nothing is selected. Heads of the absorbed form count in tiles of 16, which its kernels compute. The
// kernels say how their rates compare: a multiply-add of either form, and taking up a key.

import TamisKernels
package import TamisRuntime

package enum ExpandedForm {
  /// Fewer rows than this are not worth the expansion, whatever the count says.
  package static let fewestRows = 32

  /// How the kernels' rates in the two forms compare (tk_table).
  package struct Costs {
    package var expanded = 1.0
    package var gather = 0.0

    package init() {}

    /// What was not measured counts alike: fp32.
    package init(_ context: Context, floats: Bool) {
      guard !floats else { return }
      expanded = Double(context.kernels.pointee.expanded_cost)
      gather = Double(context.kernels.pointee.gather_cost)
    }
  }

  /// The position from which on rows are cheaper absorbed; 0: all are. rows: that share an expansion; selected: keys
  /// that a row selects, 0: it attends to all.
  @inline(never)  // one copy, whoever calls
  package static func end(_ config: ModelConfig, rows: Int, selected: Int, _ costs: Costs) -> Int {
    guard rows >= fewestRows else { return 0 }
    let heads = Double(config.heads)
    let up = heads * Double(config.latent) * Double(config.nope &+ config.value)
    let expanded = costs.expanded * (heads * Double(config.queryDim &+ config.value) + up / Double(rows))
    let tiles = Double((config.heads &+ 15) / 16) + costs.gather
    let absorbed = 16 * tiles * Double(config.keyDim &+ config.latent)
    // While every key is selected; behind that the absorbed form costs no more.
    let early = expanded < absorbed ? .infinity : up / (expanded - absorbed)
    let crossing =
      selected == 0 || early <= Double(selected) ? early : (Double(selected) * absorbed + up) / expanded
    return crossing >= Double(config.maxPositions) ? config.maxPositions : Int(crossing)
  }
}
