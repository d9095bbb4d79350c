package layer

import (
	"context"
	"errors"
	"io"
)

// stream is the tar stream as archive/tar gets to see it. It ends early with its
// context, which is thus looked at between entries and within large files.
type stream struct {
	ctx context.Context
	r   io.Reader
	eof bool // r has come to its end
}

func (s *stream) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != io.EOF {
		return n, err
	}
	if n > 0 { // The end comes with the next call then.
		return n, nil
	}
	s.eof = true
	return 0, io.EOF
}

// finish reads what follows the end of the archive, usually padding of zeros.
// archive/tar stops reading after the two blocks of zeros at the end. Without
// them it goes on to the end of the stream, and takes a cut between two entries
// for the end of the archive.
func (s *stream) finish(unmarked bool) error {
	if s.eof && !unmarked {
		return errors.New("it ends without the mark of its end, so it has probably been cut off")
	}
	_, err := io.Copy(io.Discard, s)
	return err
}
