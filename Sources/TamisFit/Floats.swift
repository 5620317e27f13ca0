// A block of floats in a context's memory, given back when its last owner goes. It refuses to grow.

import Glibc
package import TamisRuntime

package final class Floats: @unchecked Sendable {
  package let start: UnsafeMutablePointer<Float>
  package let count: Int
  private let context: Context

  /// Contents undefined.
  package init(_ context: Context, _ count: Int, _ what: StaticString) throws(TamisError) {
    start = try context.allocate(bytes: Size.product(count, 4), alignment: 64, what: what)
      .assumingMemoryBound(to: Float.self)
    self.count = count
    self.context = context
  }

  deinit { context.release(start, bytes: count &* 4) }

  package var bytes: Int { count &* 4 }

  package func clear() { start.update(repeating: 0, count: count) }

  /// `other` has as many.
  package func copy(_ other: Floats) { start.update(from: other.start, count: min(count, other.count)) }

  /// No NaN and no infinity.
  package var allFinite: Bool { isFinite(start, count) }
}

/// No NaN and no infinity among `count` floats.
func isFinite(_ start: UnsafePointer<Float>, _ count: Int) -> Bool {
  var worst: UInt32 = 0
  for i in 0..<max(count, 0) { worst = max(worst, start[i].bitPattern & 0x7fff_ffff) }
  return worst < 0x7f80_0000
}

extension Float {
  /// Natural.
  var logarithm: Float { logf(self) }
}
