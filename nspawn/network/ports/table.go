package ports

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Table represents the nftables tables in the network namespace in which Open was called.
// Its methods may be called concurrently.
type Table struct {
	mu       sync.Mutex
	conn     *nftables.Conn
	machines map[string]rows // the elements that each machine should have, by machine name
	bridged  bool            // the bridge table is in use
}

// Open creates the table, or its missing parts, and reads its elements.
func Open() (*Table, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables (is CAP_NET_ADMIN missing?): %w", err)
	}
	t := &Table{conn: conn}
	err = t.change(addTable)
	if err == nil {
		t.machines, err = t.list()
	}
	for _, machine := range t.machines {
		t.bridged = t.bridged || len(machine[members]) > 0
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make table inet %s: %w", TableName, err), conn.CloseLasting())
	}
	return t, nil
}

// Close closes the connection to the kernel. The table remains.
func (t *Table) Close() error { return t.conn.CloseLasting() }

// InUseError reports that a port, or an address, already belongs to another machine.
type InUseError struct{ Port, Owner string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s of the host is forwarded to machine %s", e.Port, e.Owner)
}

// Add makes the machine reachable. It replaces the elements of an earlier machine of the
// same name. If one of the ports is forwarded to another machine, Add returns an
// *InUseError and changes nothing. The caller then checks whether that machine still
// exists, and removes it if it does not.
func (t *Table) Add(m Machine) error {
	wanted, err := m.rows()
	if err != nil {
		return fmt.Errorf("add machine %s to table %s: %w", m.Name, TableName, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkAddresses(m); err != nil {
		return err
	}
	if len(m.Mappings) > 0 && m.Link != "" {
		if err := openLoopback(m); err != nil {
			return fmt.Errorf("forward ports of the host's loopback to machine %s: %w", m.Name, err)
		}
	}
	if len(wanted[members]) > 0 && !t.bridged {
		if err := t.change(addBridgeTable); err != nil {
			return fmt.Errorf("make table bridge %s: %w", TableName, err)
		}
		t.bridged = true
	}
	add := func(conn *nftables.Conn) error { return addRows(conn, wanted) }
	err = t.change(add)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
		err = t.addAgain(m.Name, wanted)
	}
	if err != nil {
		return fmt.Errorf("add machine %s to table %s: %w", m.Name, TableName, err)
	}
	t.machines[m.Name] = wanted
	return nil
}

// checkAddresses returns an *InUseError if another machine has an address of this one. In
// the kernel's sets, the address would remain the other machine's element, and be removed
// with it.
func (t *Table) checkAddresses(m Machine) error {
	for _, address := range []netip.Addr{m.IPv4, m.IPv6} {
		if owner := t.owner(address); owner != "" && owner != m.Name {
			return &InUseError{Port: "address " + address.String(), Owner: owner}
		}
	}
	return nil
}

// owner returns the machine that has an address, as far as this Table knows.
func (t *Table) owner(address netip.Addr) string {
	if !address.IsValid() {
		return ""
	}
	for name, machine := range t.machines {
		for _, has := range machine.addresses() {
			if has == address {
				return name
			}
		}
	}
	return ""
}

// addresses returns the machine's addresses in the table.
func (r rows) addresses() (list []netip.Addr) {
	for _, f := range families {
		for _, set := range []string{f.machines, f.direct} {
			for _, element := range r[set] {
				address, _ := netip.AddrFromSlice(element.Key) // the key has the length of an address
				list = append(list, address)
			}
		}
	}
	return list
}

// Has reports whether a machine other than the named one has the address.
func (t *Table) Has(address netip.Addr, name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	owner := t.owner(address)
	return owner != "" && owner != name
}

// Addresses returns the addresses of a machine.
func (t *Table) Addresses(name string) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.machines[name].addresses()
}

// addAgain adds the rows after a first attempt has failed: the table is missing, or a
// port is taken by another machine or by an earlier machine of the same name.
func (t *Table) addAgain(name string, wanted rows) error {
	if err := t.change(t.addTables); err != nil {
		return err
	}
	have, err := t.list()
	if err != nil {
		return err
	}
	for owner, other := range have {
		if taken := overlap(wanted, other); taken != "" && owner != name {
			return &InUseError{Port: taken, Owner: owner}
		}
	}
	return t.change(func(conn *nftables.Conn) error {
		return errors.Join(deleteRows(conn, have[name]), addRows(conn, wanted))
	})
}

// overlap returns a description of the first port that both machines forward, or "".
func overlap(wanted, other rows) string {
	for _, f := range families {
		for _, set := range []string{f.ports, f.anywhere} {
			for _, a := range wanted[set] {
				same := func(b nftables.SetElement) bool { return slices.Equal(a.Key, b.Key) }
				if slices.ContainsFunc(other[set], same) {
					return describeKey(a.Key)
				}
			}
		}
	}
	return ""
}

// Remove removes the machine's elements, whoever added them, and ends the flows to its
// addresses. It reports whether there was anything to remove; it is not an error if there
// was not.
func (t *Table) Remove(name string) (had bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.machines, name)
	have, err := t.list()
	if err == nil && len(have[name]) == 0 {
		return false, nil
	}
	if err == nil {
		err = t.change(func(conn *nftables.Conn) error { return deleteRows(conn, have[name]) })
	}
	if errors.Is(err, unix.ENOENT) { // The table has been flushed since then, or has never existed.
		err = nil
	}
	if err == nil {
		err = endFlows(have[name])
	}
	if err != nil {
		return false, fmt.Errorf("remove machine %s from table %s: %w", name, TableName, err)
	}
	return true, nil
}

// Owners returns the names of all machines in the table, sorted.
func (t *Table) Owners() ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	have, err := t.list()
	if err != nil {
		return nil, fmt.Errorf("list machines of table %s: %w", TableName, err)
	}
	return slices.Sorted(maps.Keys(have)), nil
}

// addTables adds the tables that are in use to a transaction.
func (t *Table) addTables(conn *nftables.Conn) error {
	err := addTable(conn)
	if t.bridged {
		err = errors.Join(err, addBridgeTable(conn))
	}
	return err
}

// change runs one transaction.
func (t *Table) change(fill func(*nftables.Conn) error) error {
	err := fill(t.conn)
	if flushed := t.conn.Flush(); err == nil {
		err = flushed
	}
	return err
}

// list reads the elements of all machines from the kernel. A missing table has no
// elements.
func (t *Table) list() (map[string]rows, error) {
	machines := map[string]rows{}
	for _, sets := range [][]*nftables.Set{inetSets(), bridgeSets()} {
		_, err := t.conn.GetSetByName(sets[0].Table, sets[0].Name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find set %s: %w", sets[0].Name, err)
		}
		for _, set := range sets {
			elements, err := t.conn.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("list elements of %s: %w", set.Name, err)
			}
			for _, element := range elements {
				if machines[element.Comment] == nil {
					machines[element.Comment] = rows{}
				}
				machines[element.Comment][set.Name] = append(machines[element.Comment][set.Name], element)
			}
		}
	}
	return machines, nil
}

func addRows(conn *nftables.Conn, r rows) error {
	return eachSet(r, conn.SetAddElements)
}

func deleteRows(conn *nftables.Conn, r rows) error {
	return eachSet(r, conn.SetDeleteElements)
}

func eachSet(r rows, do func(*nftables.Set, []nftables.SetElement) error) error {
	for _, set := range sets() {
		if len(r[set.Name]) == 0 {
			continue
		}
		if err := do(set, r[set.Name]); err != nil {
			return err
		}
	}
	return nil
}
