// A selection hook for tests: it records its calls, may change keys, and may do something while a call runs.

import TamisModel
import Testing

/// What a hook is called with, and what it does there.
final class Hook {
  struct Call: Equatable {
    var layer: Int
    var request: Int
    var first: Int
    var k: Int
    /// [rows][k]
    var keys: [[Int32]]
  }

  var calls: [Call] = []
  var answer: Int32 = 0
  /// Changes the keys of one row, which stands at `position`.
  var change: (_ keys: UnsafeMutableBufferPointer<Int32>, _ position: Int) -> Void = { _, _ in }
  var visit: () throws -> Void = {}

  var options: EvaluateOptions {
    var options = EvaluateOptions(rows: .all)
    options.attention = .sparse
    options.selection = SelectionHook(
      { user, layer, request, first, rows, k, indices in
        guard let user, let indices else { return 99 }
        let hook = Unmanaged<Hook>.fromOpaque(user).takeUnretainedValue()
        let (rows, k) = (Int(rows), Int(k))
        var keys: [[Int32]] = []
        for row in 0..<rows {
          let mine = UnsafeMutableBufferPointer(start: indices + row * k, count: k)
          keys.append(Array(mine))
          hook.change(mine, Int(first) + row)
        }
        hook.calls.append(Call(layer: Int(layer), request: Int(request), first: Int(first), k: k, keys: keys))
        do { try hook.visit() } catch { Issue.record(error) }
        return hook.answer
      }, user: Unmanaged.passUnretained(self).toOpaque())
    return options
  }
}
