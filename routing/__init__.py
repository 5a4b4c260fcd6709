"""Who decides (views and groups, pure) and where they are (the Kademlia DHT): design section 4, never mixed up."""
