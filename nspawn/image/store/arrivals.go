package store

import (
	"context"
	"errors"
	"sync"
)

// errArrived ends work on an item that another pull has completed.
var errArrived = errors.New("the item has arrived from elsewhere")

// arrivals holds the pulls of this process that wait for items. Normally the plugin is
// the only process that pulls. A pull that misses an arrival in another process
// continues, and finds the item when it is done.
var arrivals = arrivalList{waiting: map[string]map[*arrival]bool{}}

type arrivalList struct {
	mu      sync.Mutex
	waiting map[string]map[*arrival]bool // by the path of the item
}

type arrival struct{ cancel context.CancelCauseFunc }

// expect returns a context that ends with errArrived when an item arrives. The caller
// must call done.
func (l *arrivalList) expect(ctx context.Context, path string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &arrival{cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[path] == nil {
		l.waiting[path] = map[*arrival]bool{}
	}
	l.waiting[path][a] = true
	return ctx, func() {
		cancel(nil)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting[path], a)
		if len(l.waiting[path]) == 0 {
			delete(l.waiting, path)
		}
	}
}

// announce ends the contexts of all pulls that expect an item.
func (l *arrivalList) announce(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range l.waiting[path] {
		a.cancel(errArrived)
	}
}
