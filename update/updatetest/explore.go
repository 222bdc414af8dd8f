package updatetest

import (
	"math/rand/v2"
)

// Subsets calls f with every way in which a power cut can keep n unsynced
// writes: all subsets of up to ten, and beyond that every prefix and samples
// drawn from seed. It stops when f returns false.
func Subsets(n, samples int, seed uint64, f func(keep func(i int) bool) bool) {
	if n <= 10 {
		for mask := range 1 << n {
			if !f(func(i int) bool { return mask>>i&1 == 1 }) {
				return
			}
		}
		return
	}
	for prefix := range n + 1 {
		if !f(func(i int) bool { return i < prefix }) {
			return
		}
	}
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	for range samples {
		bits := make([]bool, n)
		for i := range bits {
			bits[i] = r.IntN(2) == 1
		}
		if !f(func(i int) bool { return bits[i] }) {
			return
		}
	}
}

// Explore runs scenario with the power failing at step 0, 1, 2 and so on until
// it runs to its end, and calls after with every cut. Each run starts from
// nothing: scenario makes its own world. It returns how many cuts there were.
func Explore(scenario func(p *Power), after func(p *Power, step string)) int {
	for n := 0; ; n++ {
		p := NewPower(n)
		step, gone := p.Run(func() { scenario(p) })
		if !gone {
			return n
		}
		after(p, step)
	}
}
