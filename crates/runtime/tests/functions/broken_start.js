throw new RangeError('gone');
