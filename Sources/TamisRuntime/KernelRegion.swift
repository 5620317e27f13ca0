// The kernels' `enter` and `leave` around work on one thread, nested or not: on AMX `leave` gives the tile
// configuration back, which must not happen under an outer region that still needs it.
package import TamisKernels
import TamisShims

package enum KernelRegion {
  /// Returns the table that was entered before, for `leave`.
  package static func enter(_ kernels: UnsafePointer<tk_table>) -> UnsafeRawPointer? {
    let outer = tamis_shims_entered()
    guard outer != UnsafeRawPointer(kernels) else { return outer }
    tamis_shims_set_entered(kernels)
    if let enter = kernels.pointee.enter { enter() }
    return outer
  }

  package static func leave(_ kernels: UnsafePointer<tk_table>, outer: UnsafeRawPointer?) {
    guard outer != UnsafeRawPointer(kernels) else { return }
    if let leave = kernels.pointee.leave { leave() }
    tamis_shims_set_entered(outer)
    guard let table = outer?.assumingMemoryBound(to: tk_table.self) else { return }
    if let enter = table.pointee.enter { enter() }
  }
}
