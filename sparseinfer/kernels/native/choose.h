// Which neurons are computed, decided before a row of the gate is read: the phases of it.
#pragma once

#include "kernels.h"
#include "thread_pool.h"

namespace sparseinfer {

// Whether it only considers neurons, whose gates decide: a sketch decides in their place.
inline bool is_predictor(Choice kind) { return kind == Choice::lowrank || kind == Choice::sign; }

// Neurons that a thread decides on at a time: a multiple of 16.
int64_t neurons_per_choice(const ChooserView &chooser, int64_t threads);

// Bits [blocks of kMaxRows rows, neurons] of x [rows, hidden]: bit b of a block is its row b.
void choose_rows(const ChooserView &chooser, const Kernels &kernels, ThreadPool &pool,
                 const float *x, uint16_t *chosen, int64_t rows);

// What one call on up to kMaxRows rows of x needs, and does. Memory is that of the caller.
struct Choosing {
    uint16_t *chosen;     // [neurons]
    float *g;             // [rows, neurons] of planes, else null
    float *u;
    float *z;             // [rows, rank] of lowrank, else null
    uint8_t *inputs;      // [rows, choice_bytes]
    uint8_t *z_inputs;    // [rows, bytes] of lowrank
};

// Takes its memory from an Arena.
template <class Arena>
Choosing room_to_choose(const ChooserView &chooser, const Kernels &kernels, int64_t rows,
                        Arena &arena) {
    Choosing room{};
    if (chooser.kind == Choice::none) return room;
    const bool planes = chooser.kind == Choice::planes, lowrank = chooser.kind == Choice::lowrank;
    room.chosen = arena.template take<uint16_t>(chooser.neurons);
    room.g = arena.template take<float>(planes ? rows * chooser.neurons : 0);
    room.u = arena.template take<float>(planes ? rows * chooser.neurons : 0);
    room.z = arena.template take<float>(lowrank ? rows * chooser.inward.rows : 0);
    room.inputs = arena.template take<uint8_t>(rows * kernels.choice_bytes(chooser));
    room.z_inputs = arena.template take<uint8_t>(
        lowrank ? rows * kernels.input_bytes(chooser.outward.format, chooser.inward.rows) : 0);
    if (!planes) room.g = room.u = nullptr;
    return room;
}

// Fills `room` for rows of x on the pool, which is held by the caller.
void choose_on(const ChooserView &chooser, const Kernels &kernels, ThreadPool &pool,
               const float *x, int64_t rows, const Choosing &room);

}  // namespace sparseinfer
