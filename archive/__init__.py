"""Work on archives: any number of streams or images, in folders or object stores, decoded, enhanced or encoded on Ray."""
