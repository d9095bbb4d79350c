package names

import "strings"

// othersBegin begins the part of /etc/hosts that names the other members of a zone.
const othersBegin = "# Other containers of the zone:\n"

// WithOthers returns the text of a member's /etc/hosts with the lines of the other members
// (Hosts.Own), instead of those that it had. A name that the text has already, or an earlier
// member, keeps its meaning: nobody takes the name of another by joining the zone.
func WithOthers(text string, members []string) string {
	own, _, _ := strings.Cut(text, othersBegin)
	taken := map[string]bool{}
	take(taken, own)
	var others strings.Builder
	for _, member := range members {
		for line := range strings.Lines(member) {
			address, names, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			for name := range strings.FieldsSeq(names) {
				if !taken[strings.ToLower(name)] {
					others.WriteString(address + " " + name + "\n")
				}
			}
		}
		take(taken, member)
	}
	if others.Len() == 0 {
		return own
	}
	return own + othersBegin + others.String()
}

// take adds the names of hosts(5) lines, which do not distinguish between cases.
func take(taken map[string]bool, lines string) {
	for line := range strings.Lines(lines) {
		for i, field := range strings.Fields(line) {
			if i > 0 {
				taken[strings.ToLower(field)] = true
			}
		}
	}
}
